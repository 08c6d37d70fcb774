"""Reporting: what was predicted, how fast, and how often it was right."""
