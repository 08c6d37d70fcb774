"""RepositoryModelLoadRequest, written around a model's bytes by hand.

protobuf and grpcio would each copy a message that is as large as the model. A head made here and then the bytes are
the whole message, because the field that holds them comes last.
"""

from collections.abc import Mapping

from inferplane.server.inference.wire import length_prefixed, opening

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
    head = length_prefixed(_MODEL_NAME, name.encode())
    head += _parameter("config", length_prefixed(_STRING, config.encode()))
    for file, content in files.items():
        head += _parameter(file, length_prefixed(_BYTES, content))
    value = opening(_BYTES, size)
    entry = length_prefixed(_KEY, last_file.encode()) + opening(_VALUE, len(value) + size) + value
    return head + opening(_PARAMETERS, len(entry) + size) + entry


def _parameter(key: str, value: bytes) -> bytes:
    return length_prefixed(_PARAMETERS, length_prefixed(_KEY, key.encode()) + length_prefixed(_VALUE, value))
