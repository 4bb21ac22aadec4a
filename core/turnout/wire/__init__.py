"""Bytes to Structs and back. Pure: no clock, no socket, no config."""
