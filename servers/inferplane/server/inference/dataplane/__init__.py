"""Predictions on their way: from a caller's bytes to Triton's and back."""
