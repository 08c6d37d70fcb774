"""Ways to a real Triton that tests need."""

from typing import Any

import grpc

from inferplane.server.inference.formats.load_request import LOAD_METHOD
from inferplane.server.inference.formats.onnx import load_head
from inferplane.server.tensors import Signature


async def load_model(
    channel: grpc.aio.Channel,
    name: str,
    version: int,
    signature: Signature,
    model: bytes,
    *,
    header: tuple[str, str],
    digest: str = "",
) -> None:
    """Load a small ONNX model as the loading process does, with the shim."""
    head = load_head(name, version, signature, len(model), native=False, digest=digest)
    call: Any = channel.unary_unary(LOAD_METHOD)
    await call(head + model, metadata=(header,))
