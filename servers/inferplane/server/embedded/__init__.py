"""The servers that one machine starts by itself: PostgreSQL, Triton, Envoy."""
