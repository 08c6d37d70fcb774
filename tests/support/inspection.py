"""ONNX files inspected as an upload is, and why one was refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.onnx_inspection import inspect_onnx
from inferplane.server.errors import InferplaneError
from inferplane.server.tensors import Signature

INVALID = ErrorReason.ERROR_REASON_MODEL_FORMAT_INVALID
UNSUPPORTED = ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED


async def in_chunks(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def inspect(data: bytes, **bounds: Any) -> Signature:
    return await inspect_onnx(in_chunks(data), **bounds)


async def refusal(data: bytes, **bounds: Any) -> tuple[int, str]:
    with pytest.raises(InferplaneError) as caught:
        await inspect(data, **bounds)
    assert set(caught.value.metadata) == {"detail"}
    return caught.value.reason, caught.value.metadata["detail"]
