"""ONNX models: Triton's configuration and files for one."""

import json
from importlib.resources import files
from typing import Any

from inferplane.server.tensors import Signature, TensorSpec

__all__ = ["DIGEST_PARAMETER", "model_config", "model_files"]

DIGEST_PARAMETER = "inferplane_digest"


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


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape) or [1]}
