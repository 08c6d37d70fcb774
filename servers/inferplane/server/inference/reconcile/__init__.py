"""Brings Triton to what the tables say."""
