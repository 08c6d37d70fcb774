"""Auth: who people are, their sessions and their grants."""
