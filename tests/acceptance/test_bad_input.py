"""What the data plane refuses: its handlers do the interceptors' work themselves, so they are asked again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from inferplane.client import Inferplane
from inferplane.client.errors import PermissionDenied
from inferplane.inference.v1.inference_service_pb2 import PredictRequest, TensorEncoding
from inferplane.inference.v1.tensor_pb2 import Tensor
from tests.support.mesh import error_info
from tests.support.onnx_models import identity
from tests.support.paths import INFER, PREDICT, STREAM
from tests.support.up import Up

PASSWORD = "correct horse battery"


class Caller:
    """A user who may call `mine` and not `theirs`, both of which are served."""

    def __init__(self, up: Up, channel: grpc.Channel, token: str) -> None:
        self.up = up
        self.token = token
        self.unary: Any = channel.unary_unary(INFER)
        self.stream: Any = channel.stream_stream(STREAM)
        self.predict: Any = channel.unary_unary(PREDICT)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")]

    def outcome(self, data: bytes, metadata: list[tuple[str, str]] | None = None) -> tuple[grpc.StatusCode, str]:
        try:
            self.unary(data, metadata=self.metadata if metadata is None else metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code(), error_info(error).reason
        return grpc.StatusCode.OK, ""


def request(name: str, **changes: Any) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=name, **changes)
    message.inputs.add(name="x", datatype="FP32", shape=[2])
    message.raw_input_contents.append(bytes(8))
    return message


@pytest.fixture(scope="module")
def caller(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    token = asyncio.run(prepare(up, tmp_path_factory.mktemp("models")))
    with grpc.insecure_channel(up.endpoints["inference"]) as channel:
        yield Caller(up, channel, token)


async def prepare(up: Up, directory: Path) -> str:
    async with up.admin() as plane:
        path = directory / "model.onnx"
        path.write_bytes(identity("FP32").SerializeToString())
        for name in ("mine", "theirs"):
            await plane.artifact.push(name, path)
            await plane.inference.deploy(name)
        await plane.auth.create_user("dave", PASSWORD)
        await plane.auth.grant("caller", to="dave", on="mine")
        await plane.auth.grant("caller", to="dave", on="absent")
        token = (await plane.auth.login("dave", PASSWORD)).access_token
    async with Inferplane.connect(dict(up.endpoints), token) as dave, asyncio.timeout(5):
        while not await may_see(dave, "deployments/mine"):  # noqa: ASYNC110 - the other side is another process
            await asyncio.sleep(0.05)
    return token


async def may_see(plane: Inferplane, deployment: str) -> bool:
    try:
        return [entry.name async for entry in plane.inference.list_deployments()] == [deployment]
    except PermissionDenied:
        return False


def test_what_was_granted_is_answered_with_the_predictions_id(caller: Caller) -> None:
    answer, call = caller.unary.with_call(request("mine").SerializeToString(), metadata=caller.metadata)
    assert service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0] == bytes(8)
    assert dict(call.trailing_metadata())["inferplane-prediction-id"]


def test_malformed_bytes(caller: Caller) -> None:
    assert caller.outcome(b"\xff\xff\xff\xff") == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_a_model_that_was_not_granted(caller: Caller) -> None:
    data = request("theirs").SerializeToString()
    assert caller.outcome(data) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


def test_a_name_given_twice_counts_as_triton_would_count_it(caller: Caller) -> None:
    """The last one does; whichever did, the other must not get through."""
    mine, theirs = (service_pb2.ModelInferRequest(model_name=name).SerializeToString() for name in ("mine", "theirs"))
    body = request("").SerializeToString()
    for data in (mine + theirs + body, mine + body + theirs):
        assert caller.outcome(data) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert caller.outcome(theirs + body + mine) == (grpc.StatusCode.OK, "")


def test_an_unknown_model(caller: Caller) -> None:
    data = request("absent").SerializeToString()
    assert caller.outcome(data) == (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND")


def test_an_unknown_version(caller: Caller) -> None:
    data = request("mine", model_version="7").SerializeToString()
    assert caller.outcome(data) == (grpc.StatusCode.NOT_FOUND, "MODEL_VERSION_NOT_FOUND")


@pytest.mark.parametrize("name", ["", "../mine", "mi ne", "m\u00e9", "x" * 129])
def test_a_name_outside_the_pattern(caller: Caller, name: str) -> None:
    data = request(name).SerializeToString()
    assert caller.outcome(data) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "CREDENTIALS_MISSING"),
        ([("authorization", "Bearer forged")], "CREDENTIALS_INVALID"),
        ([("authorization", "Bearer " + "a" * 9000)], "CREDENTIALS_INVALID"),
        ([("authorization", "Basic ZGF2ZTpk")], "CREDENTIALS_INVALID"),
    ],
)
def test_bad_credentials(caller: Caller, metadata: list[tuple[str, str]], reason: str) -> None:
    data = request("mine").SerializeToString()
    assert caller.outcome(data, metadata) == (grpc.StatusCode.UNAUTHENTICATED, reason)


def test_two_tokens(caller: Caller) -> None:
    data = request("mine").SerializeToString()
    assert caller.outcome(data, caller.metadata * 2) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


def test_an_output_that_the_model_does_not_have(caller: Caller) -> None:
    message = request("mine")
    message.outputs.add(name="z")
    assert caller.outcome(message.SerializeToString())[0] is grpc.StatusCode.INVALID_ARGUMENT


def typed(caller: Caller, tensor: Tensor, encoding: TensorEncoding.ValueType) -> tuple[grpc.StatusCode, str, str]:
    """Status code, reason and text of a typed prediction."""
    message = PredictRequest(deployment="deployments/mine", inputs=[tensor], output_encoding=encoding)
    try:
        caller.predict(message.SerializeToString(), metadata=caller.metadata, timeout=10)
    except grpc.RpcError as error:
        return error.code(), error_info(error).reason, error.details() or ""
    return grpc.StatusCode.OK, "", ""


def test_many_typed_values(caller: Caller) -> None:
    values = Tensor.DoubleValues(values=[0.5] * 40_000)
    many = Tensor(name="x", datatype="FP32", shape=[40_000], doubles=values)
    code, reason, _ = typed(caller, many, TensorEncoding.TENSOR_ENCODING_RAW)
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


def test_many_values_that_shall_be_answered_typed(caller: Caller) -> None:
    raw = Tensor(name="x", datatype="FP32", shape=[70_000], raw=bytes(4 * 70_000))
    code, reason, text = typed(caller, raw, TensorEncoding.TENSOR_ENCODING_TYPED)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "output_encoding must be raw for an answer of 70000 values" in text
    assert typed(caller, raw, TensorEncoding.TENSOR_ENCODING_RAW)[0] is grpc.StatusCode.OK


def test_a_shared_memory_region(caller: Caller) -> None:
    message = service_pb2.ModelInferRequest(model_name="mine")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[2])
    tensor.parameters["shared_memory_region"].string_param = "somebody-elses"
    tensor.parameters["shared_memory_byte_size"].int64_param = 8
    assert caller.outcome(message.SerializeToString()) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    message = request("mine")
    message.outputs.add(name="y").parameters["shared_memory_region"].string_param = "somebody-elses"
    assert caller.outcome(message.SerializeToString()) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


def test_every_message_of_a_stream_is_authorized_and_a_refusal_does_not_end_it(caller: Caller) -> None:
    requests = [request(name).SerializeToString() for name in ("mine", "theirs", "mine")]
    answers = list(caller.stream(iter(requests), metadata=caller.metadata, timeout=10))
    errors = [service_pb2.ModelStreamInferResponse.FromString(answer).error_message for answer in answers]
    assert errors == ["", "no grant allows this", ""]


@pytest.mark.parametrize(
    "method", ["RepositoryIndex", "RepositoryModelLoad", "SystemSharedMemoryRegister", "TraceSetting", "LogSettings"]
)
def test_methods_that_are_never_offered(caller: Caller, method: str) -> None:
    with grpc.insecure_channel(caller.up.endpoints["inference"]) as channel:
        call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=caller.metadata, timeout=10)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error_info(refused.value).reason == "METHOD_REFUSED"
