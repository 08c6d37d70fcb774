"""Page tokens: opaque, signed, and good only for the request that they were given for."""

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.keys import MasterKey

__all__ = ["PAGE_BYTES", "Page", "PageTokens", "fitting"]

DEFAULT_SIZE = 100
MAX_SIZE = 1000
PAGE_BYTES = 1 << 20
"""Signatures or descriptions on one page at most, unless a single item has more: a message has a limit."""
_MAC_SIZE = 16


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows are wanted: at most `size`, after the row whose sort key is `after`."""

    size: int
    after: str | None


class PageTokens:
    """Makes and reads page tokens."""

    def __init__(self, master: MasterKey) -> None:
        self._key = master.derive("page-tokens")

    def page(self, scope: Sequence[str], page_size: int, page_token: str) -> Page:
        """The page asked for. `scope` is all else that shapes the list: method and filters.

        Raises INVALID_FIELD for a bad size, INVALID_PAGE_TOKEN for a token of another list.
        """
        if not 0 <= page_size <= MAX_SIZE:
            raise invalid_field("page_size", f"must be 0 to {MAX_SIZE}")
        return Page(page_size or DEFAULT_SIZE, self._read(scope, page_token) if page_token else None)

    def next_token(self, scope: Sequence[str], after: str | None) -> str:
        """The token of the page after the row with sort key `after`; empty if there is none."""
        if after is None:
            return ""
        cursor = after.encode()
        return base64.urlsafe_b64encode(self._mac(scope, cursor) + cursor).decode()

    def _read(self, scope: Sequence[str], token: str) -> str:
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
            mac, cursor = raw[:_MAC_SIZE], raw[_MAC_SIZE:]
            if hmac.compare_digest(mac, self._mac(scope, cursor)):
                return cursor.decode()
        except (binascii.Error, ValueError):
            pass
        raise InferplaneError(ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN)

    def _mac(self, scope: Sequence[str], cursor: bytes) -> bytes:
        return hmac.digest(self._key, json.dumps(list(scope)).encode() + b"\0" + cursor, "sha256")[:_MAC_SIZE]


def fitting(sizes: Sequence[int], room: int) -> int:
    """How many of the first items, of these sizes in bytes, fit into `room`; at least one, if there is one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > room:
            return count
    return len(sizes)
