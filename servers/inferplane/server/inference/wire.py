"""Protobuf on the wire: finds a message's fields without parsing what they hold, and writes single ones.

A parser makes an object of each sub-message: 62 MiB of empty ones become gigabytes. A scan costs a step for each field
and stops at the number that it is given. See https://protobuf.dev/programming-guides/encoding/.
"""

from typing import NamedTuple

__all__ = ["LENGTH_DELIMITED", "Field", "TooManyFieldsError", "length_prefixed", "opening", "scan"]

LENGTH_DELIMITED = 2
_SIZES = {1: 8, 5: 4}
_KEY_BYTES = 5
_MOST_KEY = (1 << 32) - 1
_MOST = (1 << 64) - 1
"""Beyond it a varint begins at 0 again: its ten bytes hold more than protobuf's own parser keeps."""


class Field(NamedTuple):
    """A field in a message: its content, without tag and length, is `data[start:end]`; the whole begins at `tag`."""

    number: int
    wire_type: int
    tag: int
    start: int
    end: int


class TooManyFieldsError(Exception):
    """The message has more fields than it may."""


def scan(data: bytes, start: int, end: int, most: int) -> list[Field]:
    """The fields of the message in `data[start:end]`, at most `most`.

    Raises TooManyFieldsError, and ValueError where protobuf's own parser takes it for no message. Groups, which nothing
    of ours has, are refused.
    """
    fields: list[Field] = []
    position = start
    while position < end:
        if len(fields) >= most:
            raise TooManyFieldsError
        tag = position
        key, position = _varint(data, position, min(end, position + _KEY_BYTES))
        wire_type = key & 7
        begin = position
        if wire_type == LENGTH_DELIMITED:
            length, begin = _varint(data, position, end)
            position = begin + length
        elif wire_type == 0:
            _, position = _varint(data, position, end)
        elif wire_type in _SIZES:
            position += _SIZES[wire_type]
        else:
            raise ValueError("unknown wire type")
        if position > end or not 8 <= key <= _MOST_KEY:
            raise ValueError("no message")
        fields.append(Field(key >> 3, wire_type, tag, begin, position))
    return fields


def length_prefixed(number: int, content: bytes) -> bytes:
    """A field of sub-message, string or bytes, serialised."""
    return opening(number, len(content)) + content


def opening(number: int, length: int) -> bytes:
    """What comes before the content of such a field, of `length` bytes."""
    return _encoded(number << 3 | LENGTH_DELIMITED) + _encoded(length)


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _MOST, position
        shift += 7
        if shift > 63:
            raise ValueError("over-long varint")
    raise ValueError("truncated")
