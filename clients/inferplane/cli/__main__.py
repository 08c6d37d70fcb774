"""Runs the command as `python -m inferplane.cli`."""

from inferplane.cli.main import main

main()
