"""How a model is handed to Triton: its configuration, its files, its loading."""

import json
import re
from functools import partial
from importlib.resources import files
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2

from inferplane.server.tensors import Signature, TensorSpec

__all__ = ["DIGEST_PARAMETER", "TritonModels", "model_config", "model_files"]

Metadata = tuple[tuple[str, str], ...]

DIGEST_PARAMETER = "inferplane_digest"

# Triton 2.51 says the first, older ones the second.
_NO_BACKEND = re.compile(
    r"unable to find backend library for backend 'onnxruntime'|unable to find 'libtriton_onnxruntime\.so'"
)


def model_config(name: str, version: int, signature: Signature, *, native: bool, digest: str = "") -> str:
    """Triton's model configuration, as JSON for the parameter `config` of RepositoryModelLoad.

    Triton serves exactly `version` under `name`. It does no batching, so `dims` are whole shapes with -1
    where a size is free; Triton has no scalars, so a scalar has `dims` [1]. `native` chooses the ONNX Runtime
    backend, otherwise the Python backend runs `onnx_shim`.
    """
    return json.dumps(
        {
            "name": name,
            "backend": "onnxruntime" if native else "python",
            "max_batch_size": 0,
            "version_policy": {"specific": {"versions": [version]}},
            "input": [_tensor(spec) for spec in signature.inputs],
            "output": [_tensor(spec) for spec in signature.outputs],
            "parameters": {DIGEST_PARAMETER: {"string_value": digest}},
            # The native backend takes a GPU where there is one; the shim computes on the CPU alone, in one
            # process a model, because each holds the whole model.
            "instance_group": [{"kind": "KIND_AUTO" if native else "KIND_CPU", "count": 1}],
        }
    )


def model_files(version: int, model: bytes, *, native: bool) -> dict[str, bytes]:
    """The `file:` parameters of RepositoryModelLoad: the ONNX file `model`, and the shim if it is needed."""
    parameters = {f"file:{version}/model.onnx": model}
    if not native:
        parameters[f"file:{version}/model.py"] = files(__package__).joinpath("onnx_shim.py").read_bytes()
    return parameters


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


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape) or [1]}
