"""Identifiers and clocks: UUIDv7 for ids, aware UTC for records."""

import os
import secrets
import time
from datetime import UTC, datetime
from uuid import UUID

__all__ = ["now", "uuid7", "uuid7_text"]


def uuid7() -> UUID:
    """A time-ordered UUID (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    return UUID(int=value)


def uuid7_text() -> str:
    """The text of a new `uuid7`, for where one is needed for each call."""
    time_digits, random = f"{time.time_ns() // 1_000_000:012x}", _random_digits()
    return f"{time_digits[:8]}-{time_digits[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:19]}"


def _random_digits() -> str:
    """Twenty of them. To ask the system for each time would take as long as all the rest."""
    try:
        return _ready.pop()
    except IndexError:
        digits = os.urandom(10 * 256).hex()
        _ready.extend(digits[start : start + 20] for start in range(20, len(digits), 20))
        return digits[:20]


_ready: list[str] = []
_VARIANT = {digit: "89ab"[value & 3] for value, digit in enumerate("0123456789abcdef")}


def now() -> datetime:
    """The present, as aware UTC."""
    return datetime.now(UTC)
