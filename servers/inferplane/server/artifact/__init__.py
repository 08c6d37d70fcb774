"""Artifact: the bytes of models, and what they say about themselves."""
