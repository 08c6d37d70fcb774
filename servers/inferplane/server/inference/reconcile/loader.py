"""Loads models into Triton and unloads them."""

import re
from functools import partial
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2

from inferplane.server.inference.formats.onnx import model_config, model_files
from inferplane.server.tensors import Signature

__all__ = ["TritonModels"]

Metadata = tuple[tuple[str, str], ...]

# Triton 2.51 says the first, older ones the second.
_NO_BACKEND = re.compile(
    r"unable to find backend library for backend 'onnxruntime'|unable to find 'libtriton_onnxruntime\.so'"
)


class TritonModels:
    """Loads ONNX models into one Triton, by its native backend if it has one, else by the shim.

    `stub` is a `GRPCInferenceServiceStub` on a `grpc.aio` channel. Which backend there is, the first load
    finds out; a Triton that is replaced by another kind needs a new object.
    """

    def __init__(self, stub: Any, *, metadata: Metadata = ()) -> None:
        self._stub = stub
        self._metadata = metadata
        self._native: bool | None = None

    async def load(
        self,
        name: str,
        version: int,
        signature: Signature,
        model: bytes,
        *,
        digest: str = "",
        timeout: float | None = None,
    ) -> None:
        """Load `version` of the model in place of any other; returns when it is ready.

        If that fails, Triton goes on with the version it had. Raises grpc.aio.AioRpcError.
        """
        native = self._native is not False
        configure = partial(model_config, name, version, signature, digest=digest)
        files = partial(model_files, version, model)
        try:
            await self._load(name, configure(native=native), files(native=native), timeout)
        except grpc.aio.AioRpcError as error:
            if self._native is not None or not _NO_BACKEND.search(error.details() or ""):
                raise
            native = False
            await self._load(name, configure(native=native), files(native=native), timeout)
        self._native = native

    async def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Ask Triton to stop serving a model; one that is not loaded is no error.

        Returns before calls in flight have ended. Raises grpc.aio.AioRpcError.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        await self._stub.RepositoryModelUnload(request, metadata=self._metadata, timeout=timeout)

    async def _load(self, name: str, config: str, files: dict[str, bytes], timeout: float | None) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        request.parameters["config"].string_param = config
        for file, content in files.items():
            request.parameters[file].bytes_param = content
        await self._stub.RepositoryModelLoad(request, metadata=self._metadata, timeout=timeout)
