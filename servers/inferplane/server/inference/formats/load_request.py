"""RepositoryModelLoadRequest, written around a model's bytes by hand.

protobuf and grpcio would each copy a message that is as large as the model. A head made here and then the bytes are
the whole message, because the field that holds them comes last.
"""

from collections.abc import Mapping

__all__ = ["LOAD_METHOD", "MAX_MESSAGE", "request_head"]

LOAD_METHOD = "/inference.GRPCInferenceService/RepositoryModelLoad"
MAX_MESSAGE = (1 << 31) - 16
"""Bytes of the largest message that Triton 2.51 was seen to parse; of 2^31 - 1, which its channel takes, it was not."""

# Of RepositoryModelLoadRequest, of an entry of its map `parameters`, and of ModelRepositoryParameter.
_MODEL_NAME, _PARAMETERS = 2, 3
_KEY, _VALUE = 1, 2
_STRING, _BYTES = 3, 4


def request_head(name: str, config: str, files: Mapping[str, bytes], last_file: str, size: int) -> bytes:
    """All of the message but the content of `last_file`, `size` bytes that must follow."""
    head = _field(_MODEL_NAME, name.encode())
    head += _parameter("config", _field(_STRING, config.encode()))
    for file, content in files.items():
        head += _parameter(file, _field(_BYTES, content))
    value = _tag(_BYTES, size)
    entry = _field(_KEY, last_file.encode()) + _tag(_VALUE, len(value) + size) + value
    return head + _tag(_PARAMETERS, len(entry) + size) + entry


def _parameter(key: str, value: bytes) -> bytes:
    return _field(_PARAMETERS, _field(_KEY, key.encode()) + _field(_VALUE, value))


def _field(number: int, content: bytes) -> bytes:
    return _tag(number, len(content)) + content


def _tag(number: int, length: int) -> bytes:
    """A length-delimited field's beginning (protobuf's encoding guide: wire type 2)."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
