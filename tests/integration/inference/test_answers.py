"""What Triton answers is checked before it is believed, and recorded as what it is."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from inferplane.inference.v1.inference_service_pb2 import TENSOR_ENCODING_TYPED, PredictRequest
from inferplane.server.access.snapshot import Route
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.mesh import error_info, failure, reason
from tests.support.paths import PREDICT
from tests.support.stand import data_plane, echo, infer_request, target

Change = Callable[[service_pb2.ModelInferResponse], Any]

UNFIT: dict[str, Change] = {
    "another rank": lambda a: a.outputs[0].shape.append(1),
    "another type": lambda a: setattr(a.outputs[0], "datatype", "INT32"),
    "short bytes": lambda a: a.raw_output_contents.__setitem__(0, b"123"),
    "no bytes": lambda a: a.raw_output_contents.pop(),
    "another name": lambda a: setattr(a.outputs[0], "name", "z"),
    "no output": lambda a: (a.outputs.pop(), a.raw_output_contents.pop()),
    "an output twice": lambda a: (a.outputs.append(a.outputs[0]), a.raw_output_contents.append(bytes(4))),
    "an unknown version": lambda a: setattr(a, "model_version", "7"),
    "no version": lambda a: setattr(a, "model_version", ""),
}


@pytest.mark.parametrize("unfit", UNFIT)
async def test_an_answer_that_does_not_fit_is_the_models_failure(unfit: str) -> None:
    def answer(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        changed = echo(request)
        UNFIT[unfit](changed)
        return changed

    async with data_plane() as plane:
        await plane.infer()
        plane.triton.answer = answer
        error = await failure(plane.infer())
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
        assert [note.status_code for note in plane.notes.batch()] == [0, 13]


@pytest.mark.parametrize("shape", [[1, 4], [3], [2, 3], [0, 3], [-1, 3], [1, -3]])
async def test_an_answer_keeps_to_the_dimensions_that_are_fixed(shape: list[int]) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (1, 3)),))

    def shaped(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        answer = echo(request)
        answer.outputs[0].shape[:] = shape
        answer.raw_output_contents[0] = bytes(4 * abs(math.prod(shape)))
        return answer

    async with data_plane([Route("m", target(signature=signature), ready=True)]) as plane:
        plane.triton.answer = shaped
        assert await reason(plane.infer()) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
        shape[:] = [1, 3]
        await plane.infer()


async def test_bytes_that_are_no_answer_are_the_models_failure() -> None:
    async with data_plane() as plane:
        plane.triton.answer = lambda _request: b"\xff\xff"
        assert await reason(plane.infer()) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")


async def test_outputs_that_were_not_asked_for_are_not_passed_on() -> None:
    outputs = tuple(TensorSpec(name, "FP32", (-1,)) for name in ("y", "z"))
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), outputs)

    def both(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        answer = echo(request)
        answer.outputs.add(name="z", datatype="FP32", shape=[1])
        answer.raw_output_contents.append(bytes(4))
        return answer

    async with data_plane([Route("m", target(signature=signature), ready=True)]) as plane:
        plane.triton.answer = both
        assert [output.name for output in (await plane.infer()).outputs] == ["y", "z"]
        asked = infer_request()
        asked.outputs.add(name="y")
        assert await reason(plane.infer(asked)) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")


async def test_a_record_names_the_version_that_answered() -> None:
    old, new = target(1), target(2)
    async with data_plane([Route("m", old, ready=True, others=(new,))]) as plane:
        for version in ("1", "2", "1"):
            plane.triton.answer = partial(echo, version=version)
            await plane.infer()
        assert [note.target for note in plane.notes.batch()] == [old, new, old]


async def test_what_was_learned_of_a_version_does_not_outlive_it() -> None:
    async with data_plane() as plane:
        await plane.infer()
        plane.routes[0] = Route("m", target(2), ready=True)
        assert await reason(plane.infer()) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
        plane.triton.answer = lambda request: echo(request, "2")
        assert (await plane.infer()).model_version == "2"


async def test_predicted_classes_are_noted_and_the_answer_is_let_go() -> None:
    spec = TensorSpec("y", "FP32", (-1, -1))
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (spec,))

    def scores(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        answer = echo(request)
        answer.outputs[0].shape[:] = [2, request.inputs[0].shape[0] // 2]
        return answer

    async with data_plane([Route("m", target(signature=signature, label_output="y"), ready=True)]) as plane:
        plane.triton.answer = scores
        for values in (4, 4 << 20):
            await plane.infer(infer_request(values=values))
        notes = plane.notes.batch()
        assert [note.labels and note.labels.labels() for note in notes] == [["0", "0"], ["0", "0"]]
        assert sum(note.labels.size for note in notes if note.labels) < 200


async def test_classes_that_triton_ranked_itself_are_no_predicted_classes() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1, -1)),))

    def ranked(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        answer = service_pb2.ModelInferResponse(model_name="m", model_version="1")
        answer.outputs.add(name="y", datatype="BYTES", shape=[1, 1])
        answer.raw_output_contents.append(b"\x06\0\0\x000.93:7")
        return answer

    async with data_plane([Route("m", target(signature=signature, label_output="y"), ready=True)]) as plane:
        plane.triton.answer = ranked
        asked = infer_request()
        asked.outputs.add(name="y").parameters["classification"].int64_param = 1
        await plane.infer(asked)
        assert [note.labels for note in plane.notes.batch()] == [None]


TEXTS = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "BYTES", (-1,)),))


def texts(raw: bytes) -> Callable[[Any], service_pb2.ModelInferResponse]:
    """Answers three texts, which `raw` is said to hold."""

    def answer(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        made = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        made.outputs.add(name="y", datatype="BYTES", shape=[3])
        made.raw_output_contents.append(raw)
        return made

    return answer


def typed_request() -> PredictRequest:
    request = PredictRequest(deployment="deployments/m", output_encoding=TENSOR_ENCODING_TYPED)
    request.inputs.add(name="x", datatype="FP32", shape=[1], raw=bytes(4))
    return request


async def test_too_few_bytes_for_the_texts_of_an_answer_are_the_models_failure() -> None:
    async with data_plane([Route("m", target(signature=TEXTS), ready=True)]) as plane:
        plane.triton.answer = texts(b"\5\0\0\0ab")
        assert await reason(plane.infer()) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")


@pytest.mark.parametrize("raw", [b"\5\0\0\0abcdefghijkl", bytes(16), bytes(4) + b"\x09\0\0\0" + bytes(8)])
async def test_texts_that_are_cut_off_or_too_many_are_the_models_failure(raw: bytes) -> None:
    async with data_plane([Route("m", target(signature=TEXTS), ready=True)]) as plane:
        plane.triton.answer = texts(raw)
        call = plane.call(typed_request().SerializeToString(), PREDICT)
        assert await reason(call) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")


async def test_the_texts_of_a_large_answer_that_are_cut_off_are_the_models_failure() -> None:
    async with data_plane([Route("m", target(signature=TEXTS, label_output="y"), ready=True)]) as plane:
        plane.triton.answer = texts(b"\xff\xff\xff\x7f" + bytes(8 << 10))
        assert await reason(plane.infer()) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")


@pytest.mark.parametrize("given", ["\u00e9" * 100, "a\0b"])
async def test_an_id_that_could_not_be_recorded_is_refused(given: str) -> None:
    request = typed_request()
    request.client_request_id = given
    async with data_plane() as plane:
        error = await failure(plane.call(request.SerializeToString(), PREDICT))
        assert error_info(error).reason == "INVALID_FIELD"
