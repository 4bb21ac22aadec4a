"""Answers to questions that mean the same: found by their vectors, decided by a verifier, metered against a budget."""
