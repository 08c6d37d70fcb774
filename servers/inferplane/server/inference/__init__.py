"""Inference: what is served, and by which Triton."""
