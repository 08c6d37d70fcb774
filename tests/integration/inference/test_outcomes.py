"""Each call of the data plane has exactly one outcome: counted, logged where it must be, recorded where allowed."""

import asyncio
import gc
import tracemalloc
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from tritonclient.grpc import service_pb2

from inferplane.inference.v1.inference_service_pb2 import PredictRequest
from inferplane.server.access.snapshot import GrantRow, Route
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.identity.principal import Principal
from inferplane.server.inference.dataplane import outcome, routing
from inferplane.server.inference.dataplane.request import MAX_HEAD
from inferplane.server.inference.wire import length_prefixed
from tests.support.mesh import error_info, failure, reason, until
from tests.support.paths import INFER, PREDICT, STREAM
from tests.support.stand import FORGED, DataPlane, data_plane, infer_request, target

REFUSED = "inferplane_predictions_refused_total"
PREDICTIONS = "inferplane_predictions_total"


async def without_token(plane: DataPlane) -> Any:
    method: Any = plane.channel.unary_unary(INFER)
    return await method(infer_request().SerializeToString())


async def stream_without_token(plane: DataPlane) -> Any:
    method: Any = plane.channel.stream_stream(STREAM)
    return [answer async for answer in method(iter([infer_request().SerializeToString()]))]


REFUSALS: dict[str, tuple[Any, str]] = {
    "no token": (without_token, "CREDENTIALS_MISSING"),
    "forged token": (lambda plane: plane.infer(user=FORGED), "CREDENTIALS_INVALID"),
    "stream without a token": (stream_without_token, "CREDENTIALS_MISSING"),
    "stream with a forged token": (lambda plane: plane.stream(FORGED), "CREDENTIALS_INVALID"),
    "stream without a grant": (lambda plane: plane.stream("eve"), "PERMISSION_DENIED"),
    "no grant": (lambda plane: plane.infer(user="eve"), "PERMISSION_DENIED"),
    "malformed": (lambda plane: plane.infer(b"\xff\xff"), "MALFORMED_REQUEST"),
    "no such deployment": (lambda plane: plane.infer(infer_request("other")), "DEPLOYMENT_NOT_FOUND"),
    "no name": (lambda plane: plane.infer(infer_request("../m")), "INVALID_FIELD"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refused_call_is_counted_and_logged_with_its_id_and_not_recorded(refusal: str) -> None:
    call, why = REFUSALS[refusal]
    async with data_plane() as plane:
        with capture_logs() as logs:
            error = await failure(call(plane))
        assert plane.count(REFUSED, reason=why) == 1
        (line,) = [line for line in logs if line["event"] == "prediction_refused"]
        assert (line["reason"], line["request_id"]) == (why, dict(error.trailing_metadata())["inferplane-request-id"])
        assert len(plane.notes) == 0


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (infer_request("other"), "DEPLOYMENT_NOT_FOUND"),
        (infer_request("../m"), "INVALID_FIELD"),
        (b"\xff\xff", "MALFORMED_REQUEST"),
        (infer_request("theirs"), "PERMISSION_DENIED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_refused_message_of_a_stream_is_counted_and_logged_and_not_recorded(refused: Any, why: str) -> None:
    async with data_plane() as plane:
        plane.grants[:] = [GrantRow("users/alice", "caller", name) for name in ("m", "other")]
        call = plane.stream()
        with capture_logs() as logs:
            await call.write(refused if isinstance(refused, bytes) else refused.SerializeToString())
            await call.read()
            call.cancel()
        assert plane.count(REFUSED, reason=why) == 1
        lines = [line for line in logs if line["event"] == "prediction_refused"]
        assert [(line["reason"], line["caller"]) for line in lines] == [(why, "users/alice")]
        assert len(plane.notes) == 0


async def test_a_refused_typed_prediction_is_counted_and_logged_and_not_recorded() -> None:
    request = PredictRequest(deployment="deployments/other")
    async with data_plane() as plane:
        with capture_logs() as logs:
            assert (await reason(plane.call(request.SerializeToString(), PREDICT)))[1] == "DEPLOYMENT_NOT_FOUND"
        assert plane.count(REFUSED, reason="DEPLOYMENT_NOT_FOUND") == 1
        assert [line["reason"] for line in logs if line["event"] == "prediction_refused"] == ["DEPLOYMENT_NOT_FOUND"]
        assert len(plane.notes) == 0


async def test_who_may_call_nothing_is_asked_to_get_no_more_than_what_was_called() -> None:
    async with data_plane() as plane:
        asked = error_info(await failure(plane.infer(user="eve"))).metadata
        assert (asked["permission"], "resource" in asked) == ("PREDICT", False)
        plane.grants.append(GrantRow("users/eve", "caller", "theirs"))
        assert error_info(await failure(plane.infer(user="eve"))).metadata["resource"] == "m"


async def test_nothing_but_the_name_is_read_of_a_request_that_its_caller_may_not_make() -> None:
    """Else it would be told what is wrong with it."""
    too_much = infer_request().SerializeToString() + length_prefixed(2, b"1" * MAX_HEAD)
    async with data_plane() as plane:
        assert (await reason(plane.infer(too_much)))[1] == "MESSAGE_TOO_LARGE"
        plane.grants.append(GrantRow("users/eve", "caller", "theirs"))
        assert (await reason(plane.infer(too_much, user="eve")))[1] == "PERMISSION_DENIED"


async def test_the_line_about_a_stranger_names_the_address() -> None:
    async with data_plane() as plane:
        with capture_logs() as logs:
            await failure(without_token(plane))
        assert [line["address"] for line in logs if line["event"] == "prediction_refused"] == ["ipv4:127.0.0.1"]


async def test_refusals_are_logged_at_a_bounded_rate_and_all_counted() -> None:
    calls = 20 * outcome.LOGGED_A_SECOND
    async with data_plane() as plane:
        with capture_logs() as logs:
            began = asyncio.get_running_loop().time()
            for _ in range(calls):
                await failure(plane.infer(user="eve"))
            seconds = asyncio.get_running_loop().time() - began
        assert plane.count(REFUSED, reason="PERMISSION_DENIED") == calls
        assert outcome.LOGGED_A_SECOND <= len(logs) <= outcome.LOGGED_A_SECOND * (seconds + 2)


async def test_a_call_that_failed_is_logged_with_its_deployment_counted_and_recorded() -> None:
    async with data_plane() as plane:
        plane.triton.answer = lambda _request: grpc.StatusCode.INTERNAL
        with capture_logs() as logs:
            error = await failure(plane.infer())
        assert error.code() is grpc.StatusCode.INTERNAL
        (line,) = logs
        assert "what Triton says" in line["details"]
        request_id = dict(error.trailing_metadata())["inferplane-request-id"]
        assert (line["deployment"], line["request_id"], line["caller"]) == ("m", request_id, "users/alice")
        assert plane.count(PREDICTIONS, deployment="m", code="INTERNAL") == 1
        assert [(note.prediction_id, note.status_code) for note in plane.notes.batch()] == [(request_id, 13)]


async def test_the_log_says_what_did_not_fit_and_what_the_model_refused() -> None:
    async with data_plane() as plane:
        with capture_logs() as logs:
            plane.triton.answer = lambda _request: b""
            error = await failure(plane.infer())
            plane.triton.answer = lambda _request: grpc.StatusCode.INVALID_ARGUMENT
            refusal = await failure(plane.infer())
        for line, failed in zip(logs, (error, refusal), strict=True):
            assert line["details"]
            assert (failed.details() or "").endswith(line["details"])


async def test_a_call_that_went_well_is_counted_at_once_and_leaves_no_line() -> None:
    async with data_plane() as plane:
        with capture_logs() as logs:
            await plane.infer()
        assert plane.count(PREDICTIONS, deployment="m", code="OK") == 1
        assert plane.count("inferplane_prediction_duration_seconds_count", deployment="m") == 1
        assert logs == []


async def test_a_call_whose_client_left_is_recorded_as_cancelled() -> None:
    arrived = asyncio.Event()

    async def hang(_request: Any) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    async with data_plane() as plane:
        plane.triton.answer = hang
        call = asyncio.ensure_future(plane.infer())
        await arrived.wait()
        call.cancel()
        await until(lambda: len(plane.notes) == 1)
        assert plane.notes.batch()[0].status_code == 1


async def test_what_was_asked_of_a_deployment_and_is_wrong_is_recorded() -> None:
    async with data_plane() as plane:
        bad = infer_request()
        bad.inputs[0].shape[0] = 2
        assert await reason(plane.infer(bad)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert [note.status_code for note in plane.notes.batch()] == [3]
        assert plane.triton.requests == []


async def test_nothing_is_kept_of_names_that_were_refused() -> None:
    async with data_plane() as plane:
        plane.grants[:] = [GrantRow("users/eve", "caller", "mine*")]
        await failure(plane.infer(user="eve"))
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(50):
                large = service_pb2.ModelInferRequest(model_name=f"{number}" + "n" * (1 << 20))
                assert (await reason(plane.infer(large, user="eve")))[1] in ("INVALID_FIELD", "MESSAGE_TOO_LARGE")
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 2 << 20
        assert len(plane.notes) == 0


@pytest.mark.parametrize("ready", [True, False])
async def test_a_deployment_that_is_not_ready_says_so_even_to_a_known_request(ready: bool) -> None:
    async with data_plane() as plane:
        await plane.infer()
        plane.routes[0] = Route("m", target(), ready=ready)
        if ready:
            await plane.infer()
        else:
            assert await reason(plane.infer()) == (grpc.StatusCode.UNAVAILABLE, "DEPLOYMENT_NOT_READY")


async def test_a_lost_grant_counts_even_for_a_known_request() -> None:
    async with data_plane() as plane:
        await plane.infer()
        plane.grants.clear()
        assert await reason(plane.infer()) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


@pytest.mark.parametrize("unforeseen", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
async def test_an_error_that_nobody_foresaw_is_logged_under_the_calls_id(
    monkeypatch: pytest.MonkeyPatch, unforeseen: type[BaseException]
) -> None:
    def broken(*_: Any) -> Any:
        raise unforeseen

    async with data_plane() as plane:
        monkeypatch.setattr(routing, "read_answer", broken)
        with capture_logs() as logs:
            error = await failure(plane.infer())
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        request_id = dict(error.trailing_metadata())["inferplane-request-id"]
        assert [line["request_id"] for line in logs] == [request_id, request_id]
        assert isinstance(logs[-1]["exc_info"], unforeseen)


async def test_a_failing_model_does_not_fill_the_log() -> None:
    async with data_plane() as plane:
        plane.triton.answer = lambda _request: grpc.StatusCode.INTERNAL
        with capture_logs() as logs:
            began = asyncio.get_running_loop().time()
            for _ in range(3 * outcome.FAILURES_LOGGED_A_SECOND):
                await failure(plane.infer())
            seconds = asyncio.get_running_loop().time() - began
        logged, limit = len(logs), outcome.FAILURES_LOGGED_A_SECOND
        assert limit <= logged <= limit * (seconds + 2)


async def test_a_typed_exchange_has_one_outcome_whatever_side_of_it_fails() -> None:
    async with data_plane() as plane:
        alice = Principal("users/alice")

        def refuse(*_: Any) -> Any:
            raise invalid_field("output_encoding", "must be raw")

        body = infer_request().SerializeToString()
        for encode, decode in ((refuse, lambda answer: answer), (lambda: body, refuse)):
            with pytest.raises(InferplaneError):
                await plane.forwarder.predict_as(alice, "id", "m", encode, decode, None)
        assert await plane.forwarder.predict_as(alice, "id", "m", lambda: body, lambda _: "decoded", None) == "decoded"
        assert [note.status_code for note in plane.notes.batch()] == [3, 3, 0]
        assert plane.count(PREDICTIONS, deployment="m", code="INVALID_ARGUMENT") == 2
