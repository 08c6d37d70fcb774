"""What the data plane makes of Triton's errors and of its own refusals."""

from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2

from inferplane.server.access.admission import Admission
from inferplane.server.access.snapshot import GrantRow, Route, Target
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal
from inferplane.server.identity.verification import Verifier
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.dataplane.outcome import Outcomes
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.records.notes import Notes
from inferplane.server.inference.triton_link import from_triton
from inferplane.server.rpc.errors import reason_name
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.policy import compile_snapshot

ALICE = Principal("users/alice")
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), ())


class Link:
    """A Triton that must not be reached."""

    metadata = ()

    def predictions(self) -> Any:
        return None

    predictions_in_two_steps = predictions


def forwarder(*, ready: bool) -> tuple[Forwarder, Notes]:
    route = Route("m", Target("m", 1, "sha256:" + "0" * 64, SIGNATURE, ""), ready)
    snapshot = compile_snapshot(1, [GrantRow(ALICE.subject, "caller", "*")], [route])
    verifier: Verifier = Any  # type: ignore[assignment] # nobody authenticates here
    registry = CollectorRegistry()
    notes = Notes(registry)
    link: Any = Link()
    return Forwarder(link, Admission(verifier, lambda: snapshot), Outcomes(notes, registry), UnreadAnswers(), 30), notes


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


def test_an_answer_that_is_too_large_is_told_from_a_request_that_is() -> None:
    nothing = grpc.aio.Metadata()
    details = "CLIENT: Received message larger than max (33554440 vs. 33554432)"
    error = from_triton(grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, nothing, nothing, details=details))
    assert error.metadata["detail"] == "the answer has 33554440 bytes, 33554432 are allowed"


async def refusal(forward: Forwarder, body: bytes) -> InferplaneError:
    with pytest.raises(InferplaneError) as refused:
        await forward.predict(ALICE, "id-1", body)
    return refused.value


async def test_a_deployment_that_is_not_loaded_yet_says_so_and_the_call_is_recorded() -> None:
    forward, notes = forwarder(ready=False)
    error = await refusal(forward, request())
    assert reason_name(error.reason) == "DEPLOYMENT_NOT_READY"
    assert error.retry_after
    assert [(note.prediction_id, note.status_code) for note in notes.batch()] == [("id-1", 14)]


async def test_the_clients_own_id_is_kept_within_bounds() -> None:
    forward, notes = forwarder(ready=False)
    message = service_pb2.ModelInferRequest.FromString(request())
    message.id = "\u00e9" * 100 + "\0"
    await refusal(forward, message.SerializeToString())
    (note,) = notes.batch()
    assert note.client_request_id == "\u00e9" * 64
