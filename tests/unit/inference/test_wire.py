"""The scan of a message's fields, against protobuf's own parser."""

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from inferplane.server.inference.wire import scan


def varint(value: int, size: int) -> bytes:
    """`value`, or as much of it as fits, in `size` bytes."""
    groups = [value >> 7 * index & 0x7F for index in range(size)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def taken_by_protobuf(data: bytes) -> bool:
    try:
        Empty.FromString(data)
    except DecodeError:
        return False
    return True


def taken(data: bytes) -> bool:
    try:
        scan(data, 0, len(data), 100)
    except ValueError:
        return False
    return True


sizes = st.integers(1, 11)
numbers = st.sampled_from([1, 15, 16, 2047, (1 << 29) - 1] * 4 + [0, 1 << 29, 1 << 32])
contents = {
    0: st.builds(varint, st.sampled_from([0, 1, 1 << 63, (1 << 70) - 1]), sizes),
    1: st.binary(min_size=8, max_size=8),
    2: st.builds(lambda rest, size: varint(3 + rest, size) + b"abc", st.sampled_from([0, 1 << 64, 1 << 69]), sizes),
    5: st.binary(min_size=4, max_size=4),
    6: st.just(b""),
    7: st.just(b""),
}


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """A field, whose key or length may be longer or larger than it should. No group."""
    wire_type = draw(st.sampled_from([0, 1, 2, 5] * 4 + [6, 7]))
    size = draw(st.one_of(st.just(5), sizes))
    return varint(draw(numbers) << 3 | wire_type, size) + draw(contents[wire_type])


@given(parts=st.lists(fields(), max_size=4), missing=st.sampled_from([0, 0, 0, 1, 2]))
def test_a_scan_takes_what_protobuf_takes_and_refuses_what_it_refuses(parts: list[bytes], missing: int) -> None:
    data = b"".join(parts)
    data = data[: len(data) - missing]
    assert taken(data) is taken_by_protobuf(data)


@pytest.mark.parametrize("size", range(1, 12))
def test_a_key_of_more_than_five_bytes_is_refused(size: int) -> None:
    data = varint(1 << 3 | 2, size) + b"\x01a"
    assert (taken(data), taken_by_protobuf(data)) == (size <= 5, size <= 5)
