"""Helpers of the tests: they start real processes on real sockets, on loopback and free ports."""
