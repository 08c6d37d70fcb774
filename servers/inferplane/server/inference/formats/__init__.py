"""Model formats: what Triton needs to serve each."""
