"""Answers given without asking an upstream: the exact cache and the sharing of one call by those who ask the same."""
