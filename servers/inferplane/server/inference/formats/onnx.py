"""ONNX models: Triton's configuration and files for one."""

import json
from importlib.resources import files
from typing import Any

from inferplane.server.inference.formats.load_request import MAX_MESSAGE, request_head
from inferplane.server.tensors import Signature, TensorSpec

__all__ = ["DIGEST_PARAMETER", "largest_model", "load_head", "model_config", "probe_head"]

DIGEST_PARAMETER = "inferplane_digest"
DIGEST_LENGTH = len("sha256:") + 64


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


def load_head(name: str, version: int, signature: Signature, size: int, *, native: bool, digest: str = "") -> bytes:
    """RepositoryModelLoadRequest up to the ONNX file's content, `size` bytes that must follow."""
    config = model_config(name, version, signature, native=native, digest=digest)
    return request_head(name, config, _support_files(version, native=native), f"file:{version}/model.onnx", size)


def largest_model(name: str, version: int, signature: Signature) -> int:
    """The most bytes that a model of this signature may have to reach Triton in one message."""
    return MAX_MESSAGE - len(load_head(name, version, signature, MAX_MESSAGE, native=False, digest="-" * DIGEST_LENGTH))


def probe_head(name: str) -> bytes:
    """A whole RepositoryModelLoadRequest of an empty file, by which Triton tells whether it has the native backend.

    No Triton can load it. It has the name of a model that is loaded next: Triton is not ready as long as it remembers a
    name whose last load failed.
    """
    nothing = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    return load_head(name, 1, nothing, 0, native=True)


def _support_files(version: int, *, native: bool) -> dict[str, bytes]:
    if native:
        return {}
    return {f"file:{version}/model.py": files(__package__).joinpath("onnx_shim.py").read_bytes()}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape) or [1]}
