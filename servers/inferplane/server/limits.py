"""Bounds that more than one service keeps."""

__all__ = ["MAX_CLIENT_REQUEST_ID", "MAX_LABELS", "MAX_LABEL_LENGTH"]

MAX_CLIENT_REQUEST_ID = 128
"""Bytes of the id that a client gives to its own request."""

MAX_LABELS = 10_000
"""Rows of one prediction whose classes are recorded."""

MAX_LABEL_LENGTH = 256
"""Characters of one class."""
