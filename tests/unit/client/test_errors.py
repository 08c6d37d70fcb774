"""Failed calls become typed exceptions with the service's details."""

import grpc
import pytest

from inferplane.client import Inferplane, errors
from tests.support.fake_services import REQUEST_ID
from tests.support.fake_serving import FakeMesh


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.UNKNOWN, errors.InferplaneClientError),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgument),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AlreadyExists),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPrecondition),
        (grpc.StatusCode.ABORTED, errors.Aborted),
        (grpc.StatusCode.OUT_OF_RANGE, errors.OutOfRange),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.INTERNAL, errors.Internal),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DATA_LOSS, errors.DataLoss),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
    ],
)
async def test_each_status_has_an_exception_of_its_own(
    mesh: FakeMesh, plane: Inferplane, code: grpc.StatusCode, kind: type[errors.InferplaneClientError]
) -> None:
    mesh.fault("Predict", code)
    with pytest.raises(errors.InferplaneClientError) as caught:
        await plane.inference.predict("digits", {})
    assert (type(caught.value), caught.value.status) == (kind, code)


async def test_an_error_carries_what_the_service_said(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.fault(
        "Predict",
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        metadata={"detail": "x"},
        violations=(("inputs[0].shape", "too long"),),
        retry_after=1.5,
    )
    with pytest.raises(errors.InvalidArgument) as caught:
        await plane.inference.predict("digits", {})
    error = caught.value
    assert (error.reason, error.metadata, error.violations) == (
        "INVALID_FIELD",
        {"detail": "x"},
        [("inputs[0].shape", "too long")],
    )
    assert (error.retry_after, error.request_id) == (1.5, REQUEST_ID)


async def test_malformed_details_do_not_hide_the_error() -> None:
    broken = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff")),
        details="gone",
    )
    error = errors.translate(broken)
    assert (type(error), str(error), error.reason) == (errors.NotFound, "gone", "")


async def test_a_call_gets_the_default_deadline_unless_it_has_its_own(mesh: FakeMesh, plane: Inferplane) -> None:
    await plane.auth.whoami()
    await plane.auth.whoami(timeout=300)
    default, own = mesh.fakes.time_remaining
    assert 20 < default < 40
    assert 200 < own < 400


async def test_reads_and_keyed_mutations_are_repeated_while_unavailable(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.fault("WhoAmI", grpc.StatusCode.UNAVAILABLE, times=2)
    mesh.fault("CreateUser", grpc.StatusCode.UNAVAILABLE, times=2)
    await plane.auth.whoami()
    await plane.auth.create_user("bob", "correct horse battery")
    assert mesh.fakes.calls == ["WhoAmI"] * 3 + ["CreateUser"] * 3


@pytest.mark.parametrize("method", ["Predict", "Login"])
async def test_predict_and_login_are_never_repeated(mesh: FakeMesh, plane: Inferplane, method: str) -> None:
    mesh.fault(method, grpc.StatusCode.UNAVAILABLE)
    call = plane.inference.predict("digits", {}) if method == "Predict" else plane.auth.login("alice", "x")
    with pytest.raises(errors.Unavailable):
        await call
    assert mesh.fakes.calls == [method]
