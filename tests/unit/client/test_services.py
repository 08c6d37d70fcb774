"""The typed methods of the four services."""

import asyncio
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest

from inferplane.client import DeploymentFailed, Inferplane, errors
from inferplane.client.names import ModelRef
from inferplane.inference.v1.deployment_pb2 import Deployment
from tests.support.fake_services import PREDICTION_ID
from tests.support.fake_serving import FakeMesh
from tests.support.mesh import until


async def test_lists_go_on_over_all_pages(mesh: FakeMesh, plane: Inferplane) -> None:
    for name in ("bob", "carol"):
        await plane.auth.create_user(name, "correct horse battery")
    users = [user.name async for user in plane.auth.list_users(page_size=1)]
    assert users == ["users/alice", "users/bob", "users/carol"]
    assert mesh.fakes.calls.count("ListUsers") == 3


async def test_a_role_is_given_listed_and_taken_back(mesh: FakeMesh, plane: Inferplane) -> None:
    grant = await plane.auth.grant("caller", to="alice", on="digits*")
    assert [found.name async for found in plane.auth.list_grants(of="alice")] == [grant.name]
    await plane.auth.revoke(grant.name)
    assert [found async for found in plane.auth.list_grants()] == []


async def test_the_public_keys_need_no_token(mesh: FakeMesh) -> None:
    async with Inferplane.connect(mesh.endpoints) as plane:
        assert await plane.auth.jwks() == {"keys": []}


@pytest.mark.parametrize(("ref", "served"), [("digits", 2), ("digits:1", 1), ("digits@production", None)])
async def test_deploy_resolves_the_version(mesh: FakeMesh, plane: Inferplane, ref: str, served: int | None) -> None:
    for number in (1, 2):
        mesh.artifact.add_version(f"models/digits/versions/{number}", b"x")
    deployment = await plane.inference.deploy(ref)
    version = f"versions/{served}" if served else "aliases/production"
    assert (deployment.name, deployment.targets[0].model_version) == ("deployments/digits", f"models/digits/{version}")
    assert deployment.state == Deployment.STATE_READY


async def test_deploy_on_a_served_name_replaces_what_it_serves(mesh: FakeMesh, plane: Inferplane) -> None:
    for number in (1, 2):
        mesh.artifact.add_version(f"models/digits/versions/{number}", b"x")
    await plane.inference.deploy("digits:1")
    deployment = await plane.inference.deploy("digits:2")
    assert [target.model_version for target in deployment.targets] == ["models/digits/versions/2"]


async def test_a_replacement_that_cannot_be_loaded_says_why_and_what_goes_on(mesh: FakeMesh, plane: Inferplane) -> None:
    await plane.inference.deploy("digits:1")
    mesh.inference.incoming_state = Deployment.STATE_FAILED
    with pytest.raises(DeploymentFailed, match=r"goes on with models/digits/versions/1, .*: no such operator"):
        await plane.inference.deploy("digits:2")


async def test_a_deploy_that_another_one_overtook_fails(mesh: FakeMesh, plane: Inferplane) -> None:
    first = asyncio.create_task(plane.inference.deploy("digits:1"))
    await until(lambda: bool(mesh.inference.deployments))
    mesh.inference.deployments["deployments/digits"].targets[0].model_version = "models/digits/versions/2"
    with pytest.raises(DeploymentFailed, match="serves models/digits/versions/2, which was asked for after") as failed:
        await first
    assert failed.value.reason == "DEPLOYMENT_SUPERSEDED"


async def test_deploy_of_a_model_without_versions_is_not_found(plane: Inferplane) -> None:
    with pytest.raises(errors.NotFound, match="no versions"):
        await plane.inference.deploy("digits")


async def test_a_deployment_that_cannot_be_loaded_says_why(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.inference.states = [Deployment.STATE_FAILED]
    with pytest.raises(DeploymentFailed, match="no such operator"):
        await plane.inference.deploy("digits:1")


async def test_waiting_for_a_deployment_ends_at_the_timeout(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.inference.states = [Deployment.STATE_LOADING]
    with pytest.raises(errors.DeadlineExceeded, match=r"still loading.*\(waits for Triton\)"):
        await plane.inference.deploy("digits:1", timeout=0)


async def test_predict_sends_and_gives_arrays(mesh: FakeMesh, plane: Inferplane) -> None:
    array = np.array([[1, 2], [3, 4]], dtype=np.float32)
    prediction = await plane.inference.predict("digits", {"x": array}, outputs=["x"], client_request_id="mine")
    assert (prediction.outputs["x"] == array).all()
    assert prediction.id == PREDICTION_ID
    request = mesh.inference.requests[0]
    assert (list(request.output_names), request.client_request_id) == (["x"], "mine")


async def test_feedback_tells_prediction_ids_from_request_ids(mesh: FakeMesh, plane: Inferplane) -> None:
    stored = await plane.reporting.submit_feedback("digits", {PREDICTION_ID: [1, "2"], "mine": "3"})
    sent = mesh.reporting.feedback[0].feedback
    assert stored == 2
    assert [(item.prediction_id, item.client_request_id, list(item.labels)) for item in sent] == [
        (PREDICTION_ID, "", ["1", "2"]),
        ("", "mine", ["3"]),
    ]


async def test_feedback_is_sent_in_batches_that_the_service_takes(mesh: FakeMesh, plane: Inferplane) -> None:
    stored = await plane.reporting.submit_feedback("digits", {str(number): 1 for number in range(1001)})
    assert stored == 1001
    assert [len(request.feedback) for request in mesh.reporting.feedback] == [1000, 1]


async def test_feedback_of_many_labels_is_sent_in_batches_that_the_service_takes(
    mesh: FakeMesh, plane: Inferplane
) -> None:
    await plane.reporting.submit_feedback("digits", {str(number): ["1"] * 10_000 for number in range(21)})
    assert [len(request.feedback) for request in mesh.reporting.feedback] == [20, 1]


async def test_feedback_waits_for_a_record_that_is_on_its_way(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.fault("SubmitFeedback", grpc.StatusCode.NOT_FOUND, "PREDICTION_NOT_FOUND")
    assert await plane.reporting.submit_feedback("digits", {PREDICTION_ID: 1}) == 1


async def test_feedback_for_an_unknown_prediction_is_not_found(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.fault("SubmitFeedback", grpc.StatusCode.NOT_FOUND, "PREDICTION_NOT_FOUND")
    with pytest.raises(errors.NotFound):
        await plane.reporting.submit_feedback("digits", {PREDICTION_ID: 1}, settle=0)


async def test_metrics_are_asked_for_a_span_of_time(mesh: FakeMesh, plane: Inferplane) -> None:
    since = datetime(2026, 1, 31, tzinfo=UTC)
    await plane.reporting.metrics("digits", since, quantiles=[0.5])
    query = mesh.reporting.queries[0]
    assert query.time_range.start_time.ToDatetime(tzinfo=UTC) == since
    assert not query.time_range.HasField("end_time")
    assert list(query.quantiles) == [0.5]


async def test_a_time_without_a_zone_is_refused(plane: Inferplane) -> None:
    with pytest.raises(errors.InvalidArgument, match="time zone"):
        await plane.reporting.quality("digits", datetime(2026, 1, 31))  # noqa: DTZ001 - the point


@pytest.mark.parametrize("ref", ["", "-x", "a b", "a:", "a:0", "a:x", "a@", "a@1", "a:1@b", "a/b", "a\n"])
def test_malformed_model_references_are_refused(ref: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        ModelRef.parse(ref)
