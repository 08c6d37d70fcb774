"""What the data plane makes of Triton's errors and of its own refusals."""

from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.server.access.principal import Principal
from inferplane.server.access.snapshot import GrantRow, Route, Target, compile_snapshot
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.records.recorder import Recorder
from inferplane.server.inference.triton_link import from_triton
from inferplane.server.rpc.errors import reason_name
from inferplane.server.tensors import Signature, TensorSpec

ALICE = Principal("users/alice")
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), ())


class Link:
    """A Triton that must not be reached."""

    metadata = ()

    def raw_unary(self, method: str) -> Any:
        return None

    raw_stream = raw_unary


class Sink:
    def __init__(self) -> None:
        self.records: list[PredictionRecord] = []

    async def store(self, records: list[PredictionRecord]) -> None:
        self.records += records


def forwarder(*, ready: bool) -> tuple[Forwarder, Recorder, Sink]:
    route = Route("m", Target("m", 1, "sha256:" + "0" * 64, SIGNATURE, ""), ready)
    snapshot = compile_snapshot(1, [GrantRow(ALICE.subject, "caller", "*")], [route])
    sink = Sink()
    recorder = Recorder(sink, CollectorRegistry())
    link: Any = Link()
    return Forwarder(link, lambda: snapshot, recorder, 30), recorder, sink


def request() -> bytes:
    message = service_pb2.ModelInferRequest(model_name="m", id="mine")
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.raw_input_contents.append(bytes(4))
    data: bytes = message.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INFERENCE_REJECTED"),
        (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED"),
        (grpc.StatusCode.UNKNOWN, "INFERENCE_FAILED"),
        (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_READY"),
        (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    ],
)
def test_tritons_errors_in_our_terms(code: grpc.StatusCode, reason: str) -> None:
    nothing = grpc.aio.Metadata()
    error = from_triton(grpc.aio.AioRpcError(code, nothing, nothing, details="line one\nline two"))
    assert reason_name(error.reason) == reason
    assert error.metadata.get("detail") == ("line one line two" if reason == "INFERENCE_REJECTED" else None)


async def test_a_deployment_that_is_not_loaded_yet_says_so_and_the_call_is_recorded() -> None:
    forward, recorder, sink = forwarder(ready=False)
    with pytest.raises(InferplaneError) as refused:
        forward.admit(ALICE, "id-1", request())
    assert reason_name(refused.value.reason) == "DEPLOYMENT_NOT_READY"
    assert refused.value.retry_after
    await recorder.flush()
    assert [(record.prediction_id, record.status_code) for record in sink.records] == [("id-1", 14)]


def test_the_clients_own_id_is_kept_within_bounds() -> None:
    forward, _, _ = forwarder(ready=True)
    message = service_pb2.ModelInferRequest.FromString(request())
    message.id = "\u00e9" * 100 + "\0"
    kept = forward.admit(ALICE, "id-1", message.SerializeToString()).client_request_id
    assert kept == "\u00e9" * 64
