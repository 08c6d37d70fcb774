"""Identifiers and clocks: UUIDv7 for ids, aware UTC for records."""

import secrets
import time
from datetime import UTC, datetime
from uuid import UUID

__all__ = ["now", "uuid7"]


def uuid7() -> UUID:
    """A time-ordered UUID (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    return UUID(int=value)


def now() -> datetime:
    """The present, as aware UTC."""
    return datetime.now(UTC)
