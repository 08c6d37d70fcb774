"""Which backend serves a model is Triton's to say. A Triton with the native backend is not to be had as a wheel, so
this stands in for its answers only."""

from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from inferplane.server.inference.reconcile.loader import TritonModels
from inferplane.server.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
NO_BACKEND = "failed to load 'm': unable to find backend library for backend 'onnxruntime', try specifying runtime"


class Triton:
    """Answers loads; `native` says whether it has the ONNX Runtime backend."""

    def __init__(self, *, native: bool, fails_with: str = "") -> None:
        self.native = native
        self.fails_with = fails_with
        self.backends: list[str] = []

    async def RepositoryModelLoad(self, request: Any, **_options: Any) -> Any:  # noqa: N802 - Triton's name
        backend = "onnxruntime" if '"onnxruntime"' in request.parameters["config"].string_param else "python"
        self.backends.append(backend)
        assert ("file:1/model.py" in request.parameters) is (backend == "python")
        if self.fails_with:
            raise failed(self.fails_with)
        if backend == "onnxruntime" and not self.native:
            raise failed(NO_BACKEND)
        return service_pb2.RepositoryModelLoadResponse()


def failed(details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details=details)


async def load(models: TritonModels) -> None:
    await models.load("m", 1, SIGNATURE, b"onnx")


async def test_the_native_backend_is_used_where_there_is_one() -> None:
    triton = Triton(native=True)
    models = TritonModels(triton)
    await load(models)
    await load(models)
    assert triton.backends == ["onnxruntime", "onnxruntime"]


async def test_elsewhere_the_shim_is_used_and_remembered() -> None:
    triton = Triton(native=False)
    models = TritonModels(triton)
    await load(models)
    await load(models)
    assert triton.backends == ["onnxruntime", "python", "python"]


async def test_a_model_that_the_native_backend_refuses_is_not_tried_with_the_shim() -> None:
    triton = Triton(native=True, fails_with="the model is broken")
    with pytest.raises(grpc.aio.AioRpcError):
        await load(TritonModels(triton))
    assert triton.backends == ["onnxruntime"]
