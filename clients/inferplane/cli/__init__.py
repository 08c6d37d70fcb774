"""The `inferplane` command."""
