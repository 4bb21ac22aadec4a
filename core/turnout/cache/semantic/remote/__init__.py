"""Vectors of a provider's model, by which kept questions are found that the local table does not bring together.

An endpoint (endpoint.py) gives them, within a deadline; they lie in a space of their own in each scope (space.py). What they
find is a proposal: the verifier decides about it as about any other. Their cosine alone serves only from where the labels
of this very tenant, route and model have shown it to hold (../meters.py, `gate`).
"""
