"""Who may tell and ask what."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferplane.server.identity.workloads import WorkloadSigner
from inferplane.server.settings import ServiceName
from tests.integration.reporting.records import Reporting, by_id, record
from tests.support.mesh import reason

DENIED = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_inference_may_ingest(reporting: Reporting) -> None:
    assert (await reporting.ingest(record())).stored_count == 1


async def test_an_administrator_may_not_ingest(reporting: Reporting) -> None:
    assert await reason(reporting.ingest(record(), metadata=reporting.admin)) == DENIED


async def test_another_service_may_not_ingest(reporting: Reporting) -> None:
    artifact = WorkloadSigner(reporting.mesh.settings.keys_dir, ServiceName.ARTIFACT)
    call = reporting.ingest(record(), metadata=artifact.metadata(ServiceName.REPORTING))
    assert await reason(call) == DENIED


async def test_nobody_may_not_ingest(reporting: Reporting) -> None:
    call = reporting.ingest(record(), metadata=[])
    assert await reason(call) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")


async def test_a_token_for_another_service_is_worth_nothing(reporting: Reporting) -> None:
    inference = WorkloadSigner(reporting.mesh.settings.keys_dir, ServiceName.INFERENCE)
    call = reporting.ingest(record(), metadata=inference.metadata(ServiceName.ARTIFACT))
    assert await reason(call) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


async def test_a_workload_holds_no_grant_to_read(reporting: Reporting) -> None:
    assert await reason(reporting.metrics(metadata=reporting.inference)) == DENIED


async def test_a_viewer_reads_the_models_of_the_glob(reporting: Reporting) -> None:
    await reporting.ingest(record(model_version="models/team-a-x/versions/1"))
    viewer = await reporting.mesh.user("alice", viewer="team-a-*")
    assert [v.call_count for v in (await reporting.metrics("team-a-x", metadata=viewer)).versions] == [1]
    assert [v.row_count for v in (await reporting.quality("team-a-x", metadata=viewer)).versions] == [1]


async def test_a_viewer_reads_no_other_teams_models(reporting: Reporting) -> None:
    await reporting.ingest(record(model_version="models/team-b-x/versions/1"))
    viewer = await reporting.mesh.user("alice", viewer="team-a-*")
    assert await reason(reporting.metrics("team-b-x", metadata=viewer)) == DENIED
    assert await reason(reporting.quality("team-b-x", metadata=viewer)) == DENIED


async def test_a_caller_labels_the_deployments_of_the_glob_only(reporting: Reporting) -> None:
    mine, other = record(deployment="deployments/team-a-x"), record(deployment="deployments/team-b-x")
    await reporting.ingest(mine, other)
    caller = await reporting.mesh.user("alice", caller="team-a-*")
    answer = await reporting.feedback(by_id(mine, "7"), deployment="team-a-x", metadata=caller)
    assert answer.stored_count == 1
    assert await reason(reporting.feedback(by_id(other, "7"), deployment="team-b-x", metadata=caller)) == DENIED


async def test_naming_ones_own_deployment_does_not_reach_anothers_prediction(reporting: Reporting) -> None:
    other = record(deployment="deployments/team-b-x", client_request_id="r1")
    await reporting.ingest(other)
    caller = await reporting.mesh.user("alice", caller="team-a-*")
    call = reporting.feedback(by_id(other, "7"), deployment="team-a-x", metadata=caller)
    assert await reason(call) == (grpc.StatusCode.NOT_FOUND, "PREDICTION_NOT_FOUND")


async def test_a_viewer_may_not_label(reporting: Reporting) -> None:
    prediction = record()
    await reporting.ingest(prediction)
    viewer = await reporting.mesh.user("alice", viewer="*")
    assert await reason(reporting.feedback(by_id(prediction, "7"), metadata=viewer)) == DENIED


async def test_a_caller_may_not_read_reports(reporting: Reporting) -> None:
    caller = await reporting.mesh.user("alice", caller="*")
    assert await reason(reporting.metrics(metadata=caller)) == DENIED
    assert await reason(reporting.quality(metadata=caller)) == DENIED


async def test_the_service_is_healthy_with_its_database(reporting: Reporting) -> None:
    stub: Any = health_pb2_grpc.HealthStub(reporting.mesh.channels[ServiceName.REPORTING])
    request = health_pb2.HealthCheckRequest(service="inferplane.reporting.v1.ReportingService")
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    board = reporting.mesh.services[ServiceName.REPORTING].server.health
    board.report("database", False)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
