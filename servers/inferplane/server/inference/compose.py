"""Puts the inference service together."""

from functools import partial

from inferplane.artifact.v1 import model_registry_service_pb2_grpc
from inferplane.inference.v1 import deployment_service_pb2_grpc, inference_service_pb2_grpc
from inferplane.reporting.v1 import reporting_service_pb2_grpc
from inferplane.server.access.snapshot import EMPTY, Part
from inferplane.server.bootstrap import DATABASE, Core
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.dataplane.handlers import fused_handlers
from inferplane.server.inference.dataplane.open_inference import governed_handlers
from inferplane.server.inference.dataplane.outcome import Outcomes
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.deployments import Deployments
from inferplane.server.inference.model_source import ModelSource
from inferplane.server.inference.reconcile.loader import ModelLoader
from inferplane.server.inference.reconcile.reconciler import LEADER_LOCK, Reconciler
from inferplane.server.inference.records.delivery import Delivery, ReportingSink
from inferplane.server.inference.records.notes import Notes
from inferplane.server.inference.service import DeploymentService, InferenceService
from inferplane.server.inference.triton_link import SERVICE, TritonLink
from inferplane.server.inference.triton_monitor import TritonMonitor, Wanted
from inferplane.server.inference.typed_tensors import check_typed_size
from inferplane.server.settings import ServiceName
from inferplane.server.storage.database import database_url, lone_connection
from inferplane.server.storage.leadership import Leadership

__all__ = ["compose"]

TRITON = "triton"


async def compose(core: Core) -> None:
    """Register the data plane, InferenceService and DeploymentService, and start what goes on beside them."""
    link = _triton_link(core)
    source = _model_source(core)
    notes = _records(core)
    _reconcile(core, link)
    _watch_triton(core, link)
    outcomes = Outcomes(notes, core.registry)
    unread = UnreadAnswers()
    forward = Forwarder(link, core.admission, outcomes, unread, core.settings.unary_deadline)
    core.stack.push_async_callback(forward.finish)
    core.server.arrivals.held_elsewhere = lambda: forward.under_way + unread.held
    fused = fused_handlers(
        forward,
        core.admission,
        outcomes,
        core.server.calls,
        core.server.bodies,
        unread,
        core.settings.stream_idle_limit,
    )
    # The main service first: the server as a whole serves as long as it does, with or without the database.
    governed = governed_handlers(link, core.policy.current, lambda: bool(core.server.health.serving(SERVICE)))
    core.server.add_handlers(SERVICE, governed, (TRITON,), fused=fused)
    add_typed = inference_service_pb2_grpc.add_InferenceServiceServicer_to_server
    core.server.add_service(
        add_typed, InferenceService(forward, unread), (TRITON,), checks={"Predict": check_typed_size}
    )
    add_deployments = deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server
    deployments = DeploymentService(
        Deployments(), source, core.mutations, core.database, core.pages, core.admission, core.policy
    )
    core.server.add_service(add_deployments, deployments, (DATABASE,))


def _triton_link(core: Core) -> TritonLink:
    settings = core.settings
    if settings.triton_endpoint is None:
        raise ValueError("no Triton: set INFERPLANE_TRITON_ENDPOINT, or let `inferplane up` start its own")
    secret = settings.triton_header_value.get_secret_value()
    header = (settings.triton_header_name, secret) if settings.triton_header_name else None
    link = TritonLink(settings.triton_endpoint, header, settings.max_tensor_message_size)
    core.stack.push_async_callback(link.close)
    return link


def _model_source(core: Core) -> ModelSource:
    channel = core.channel(ServiceName.ARTIFACT)
    return ModelSource(
        model_registry_service_pb2_grpc.ModelRegistryServiceStub(channel),
        lambda caller: core.signer.metadata(ServiceName.ARTIFACT, caller),
    )


def _records(core: Core) -> Notes:
    stub = reporting_service_pb2_grpc.ReportingServiceStub(core.channel(ServiceName.REPORTING))
    notes = Notes(core.registry)
    delivery = Delivery(notes, ReportingSink(stub, lambda: core.signer.metadata(ServiceName.REPORTING)))
    core.stack.push_async_callback(delivery.flush)
    core.tasks.start("prediction_records", delivery.run)
    return notes


def _reconcile(core: Core, link: TritonLink) -> None:
    artifact = core.settings.endpoints[ServiceName.ARTIFACT]
    loader = ModelLoader(link, artifact, lambda: core.signer.metadata(ServiceName.ARTIFACT))
    connect = partial(lone_connection, *database_url(core.settings, core.service), "leader")
    leadership = Leadership(connect, LEADER_LOCK)
    reconciler = Reconciler(leadership, core.database, core.units_of_work, link, loader)
    core.policy.on_refresh(Part.DEPLOYMENTS, reconciler.wake)
    core.tasks.start("reconciler", reconciler.run)


def _watch_triton(core: Core, link: TritonLink) -> None:
    def wanted() -> list[Wanted] | None:
        if core.policy.snapshot is EMPTY:
            return None
        routes = core.policy.snapshot.routes.values()
        return [Wanted(route.deployment, route.target.version, route.ready) for route in routes]

    monitor = TritonMonitor(link, wanted, lambda up: core.server.health.report(TRITON, up))
    core.tasks.start("triton_monitor", monitor.run)
    core.tasks.start("triton_connection", monitor.watch_connection)
