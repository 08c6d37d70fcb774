"""The only composition root: puts one service together from its settings and takes it apart again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from prometheus_client import CollectorRegistry

from inferplane.auth.v1.auth_service_pb2 import GetJwksRequest
from inferplane.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from inferplane.server.auth.login import published_keys
from inferplane.server.keys import MasterKey
from inferplane.server.mesh.verification import JwksCache, Verifier
from inferplane.server.mesh.workload_identity import WorkloadSigner, load_workload_keys
from inferplane.server.policy.source import PolicySource
from inferplane.server.rpc.interceptors import Guards
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.mutations import Mutations
from inferplane.server.rpc.server import RpcServer
from inferplane.server.rpc.tasks import Tasks
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.database import Database, database_url
from inferplane.server.storage.pages import PageTokens
from inferplane.server.storage.schema import check_version
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

if TYPE_CHECKING:
    from inferplane.server.artifact.chunk_store import ChunkStore
    from inferplane.server.inference.triton_link import TritonLink

__all__ = ["Core", "RunningService", "run_service"]

DATABASE = "database"
TRITON = "triton"
HOUSEKEEPING_INTERVAL = 3600.0
JWKS_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Core:
    """What every service is built on."""

    service: ServiceName
    settings: Settings
    master: MasterKey
    database: Database
    units_of_work: UnitOfWorkFactory
    mutations: Mutations
    pages: PageTokens
    policy: PolicySource
    signer: WorkloadSigner
    verifier: Verifier
    deadlines: DeadlinePolicy
    registry: CollectorRegistry
    server: RpcServer
    stack: AsyncExitStack
    tasks: Tasks

    def channel(self, service: ServiceName) -> grpc.aio.Channel:
        """A channel to another service, closed with this one."""
        return _channel(self.settings, service, self.stack)


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that accepts calls. `ports` follow the addresses that it was asked to listen on."""

    server: RpcServer
    policy: PolicySource
    registry: CollectorRegistry
    ports: list[int]


@asynccontextmanager
async def run_service(service: ServiceName, settings: Settings, *addresses: str) -> AsyncIterator[RunningService]:
    """Run one service on `addresses` until the context is left, then stop it gracefully.

    Raises SchemaVersionError where the database is of another release.
    """
    url, role = database_url(settings, service)
    await check_version(url)
    async with AsyncExitStack() as stack:
        core = _core(service, settings, PolicySource(url, role, settings.policy_max_staleness), stack)
        stack.push_async_callback(core.database.close)
        stack.push_async_callback(core.tasks.stop)
        core.policy.on_availability(lambda up: core.server.health.report(DATABASE, up))
        core.tasks.start("policy", core.policy.run)
        core.tasks.every(HOUSEKEEPING_INTERVAL, "forget_old_answers", core.units_of_work.forget_old_answers)
        await _COMPOSERS[service](core)
        await core.policy.first_snapshot()
        ports = await core.server.start(*addresses)
        stack.push_async_callback(core.server.stop)
        yield RunningService(core.server, core.policy, core.registry, ports)


def _core(service: ServiceName, settings: Settings, policy: PolicySource, stack: AsyncExitStack) -> Core:
    master = MasterKey.load(settings.master_key_path)
    database = Database(settings, service)
    units_of_work = UnitOfWorkFactory(database, master)
    registry = CollectorRegistry()
    jwks = JwksCache(_jwks_source(service, settings, database, stack))
    verifier = Verifier(jwks, load_workload_keys(settings.keys_dir), service)
    deadlines = DeadlinePolicy(settings.unary_deadline, settings.stream_idle_limit, settings.stream_minimum_rate)
    guards = Guards(verifier=verifier, policy=policy.current, deadlines=deadlines, registry=registry)
    tensors = service is ServiceName.INFERENCE
    message_size = settings.max_tensor_message_size if tensors else settings.max_message_size
    return Core(
        service=service,
        settings=settings,
        master=master,
        database=database,
        units_of_work=units_of_work,
        mutations=Mutations(units_of_work),
        pages=PageTokens(master),
        policy=policy,
        signer=WorkloadSigner(settings.keys_dir, service),
        verifier=verifier,
        deadlines=deadlines,
        registry=registry,
        server=RpcServer(settings, guards, max_message_size=message_size),
        stack=stack,
        tasks=Tasks(),
    )


def _channel(settings: Settings, service: ServiceName, stack: AsyncExitStack) -> grpc.aio.Channel:
    address = settings.endpoints.get(service)
    if address is None:
        raise ValueError(f"no endpoint: set INFERPLANE_ENDPOINTS__{service.name} to its host:port")
    # A proxy of the environment is for the outside: tokens must not pass through it.
    channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    stack.push_async_callback(channel.close)
    return channel


def _jwks_source(
    service: ServiceName, settings: Settings, database: Database, stack: AsyncExitStack
) -> Callable[[], Awaitable[str]]:
    if service is ServiceName.AUTH:
        return lambda: published_keys(database)
    stub = AuthServiceStub(_channel(settings, ServiceName.AUTH, stack))

    async def fetch() -> str:
        return (await stub.GetJwks(GetJwksRequest(), timeout=JWKS_TIMEOUT)).jwks_json

    return fetch


# Each process imports only what its own service needs: four processes of everything would cost 200 MB more.


async def _compose_auth(core: Core) -> None:
    from inferplane.auth.v1 import auth_service_pb2_grpc, identity_service_pb2_grpc
    from inferplane.server.auth import identities, login, passwords, service, sessions, tokens

    hasher = passwords.Passwords()
    flow = login.LoginFlow(
        core.database,
        core.units_of_work,
        sessions.Sessions(core.settings.session_lifetime),
        hasher,
        tokens.SigningKeys(core.master.derive("signing-keys")),
        core.settings.access_token_lifetime,
    )
    await flow.ensure_signing_key()
    core.tasks.every(HOUSEKEEPING_INTERVAL, "forget_expired", flow.forget_expired)
    auth = service.AuthService(flow, core.policy.current)
    identity = service.IdentityService(identities.Identities(hasher), core.mutations, core.database, core.pages)
    core.server.add_service(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, auth, (DATABASE,))
    core.server.add_service(identity_service_pb2_grpc.add_IdentityServiceServicer_to_server, identity, (DATABASE,))


async def _compose_inference(core: Core) -> None:
    from inferplane.artifact.v1 import artifact_service_pb2_grpc, model_registry_service_pb2_grpc
    from inferplane.inference.v1 import deployment_service_pb2_grpc, inference_service_pb2_grpc
    from inferplane.reporting.v1 import reporting_service_pb2_grpc
    from inferplane.server.inference import (
        deployments,
        forwarder,
        model_source,
        open_inference,
        reconciler,
        recorder,
        service,
        triton_link,
        triton_model,
    )

    link = _triton_link(core)
    artifact_channel = core.channel(ServiceName.ARTIFACT)
    source = model_source.ModelSource(
        model_registry_service_pb2_grpc.ModelRegistryServiceStub(artifact_channel),
        artifact_service_pb2_grpc.ArtifactServiceStub(artifact_channel),
        lambda caller: core.signer.metadata(ServiceName.ARTIFACT, caller),
    )
    records = recorder.Recorder(
        recorder.ReportingSink(
            reporting_service_pb2_grpc.ReportingServiceStub(core.channel(ServiceName.REPORTING)),
            lambda: core.signer.metadata(ServiceName.REPORTING),
        ),
        core.registry,
    )
    core.stack.push_async_callback(records.flush)
    core.tasks.start("recorder", records.run)

    loader = triton_model.TritonModels(link.stub, metadata=link.metadata)
    reconcile = reconciler.Reconciler(core.policy.connect, core.database, core.units_of_work, link, loader, source)
    core.policy.on_refresh(reconcile.wake)
    core.tasks.start("reconciler", reconcile.run)
    monitor = triton_link.TritonMonitor(
        link,
        lambda: [(route.deployment, route.version) for route in core.policy.snapshot.routes.values() if route.ready],
        lambda up: core.server.health.report(TRITON, up),
    )
    core.tasks.start("triton_monitor", monitor.run)
    core.tasks.start("triton_connection", monitor.watch_connection)

    forward = forwarder.Forwarder(link, core.policy.current, records, core.settings.unary_deadline)
    fused = open_inference.fused_handlers(forward, core.verifier, core.server.calls, core.deadlines)
    governed = open_inference.governed_handlers(link, core.policy.current)
    # The main service first: the server as a whole serves as long as it does, with or without the database.
    core.server.add_handlers(triton_link.SERVICE, governed, (TRITON,), fused=fused)
    typed = service.InferenceService(forward)
    core.server.add_service(inference_service_pb2_grpc.add_InferenceServiceServicer_to_server, typed, (TRITON,))
    deployment = service.DeploymentService(
        deployments.Deployments(), source, core.mutations, core.database, core.pages, core.policy.current
    )
    core.server.add_service(
        deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server, deployment, (DATABASE,)
    )


def _triton_link(core: Core) -> "TritonLink":
    from inferplane.server.inference.triton_link import TritonLink

    settings = core.settings
    if settings.triton_endpoint is None:
        raise ValueError("no Triton: set INFERPLANE_TRITON_ENDPOINT, or let `inferplane up` start its own")
    secret = settings.triton_header_value.get_secret_value()
    header = (settings.triton_header_name, secret) if settings.triton_header_name else None
    link = TritonLink(settings.triton_endpoint, header, settings.max_tensor_message_size)
    core.stack.push_async_callback(link.channel.close)
    return link


async def _compose_reporting(core: Core) -> None:
    from inferplane.reporting.v1 import reporting_service_pb2_grpc
    from inferplane.server.reporting import service

    reporting = service.ReportingService(core.database, core.units_of_work)
    core.server.add_service(reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server, reporting, (DATABASE,))


async def _compose_artifact(core: Core) -> None:
    from inferplane.artifact.v1 import artifact_service_pb2_grpc, model_registry_service_pb2_grpc
    from inferplane.server.artifact import blobs, inspection, registry, repository, service, upload_repository, uploads
    from inferplane.server.artifact.onnx_inspection import inspect_onnx

    chunks = await _chunk_store(core.settings)
    flow = uploads.Uploads(
        upload_repository.UploadRepository(core.database, core.units_of_work), chunks, core.settings.max_artifact_size
    )
    core.tasks.every(HOUSEKEEPING_INTERVAL, "clean_up_uploads", flow.clean_up)
    artifact = service.ArtifactService(flow, blobs.BlobReader(chunks), core.database)
    models = service.ModelRegistryService(
        registry.Registry(),
        inspection.Inspection(repository.Candidates(core.database), chunks, inspect_onnx),
        core.mutations,
        core.database,
        core.pages,
        core.policy.current,
    )
    add_artifact = artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server
    add_models = model_registry_service_pb2_grpc.add_ModelRegistryServiceServicer_to_server
    core.server.add_service(add_artifact, artifact, (DATABASE,))
    core.server.add_service(add_models, models, (DATABASE,))


async def _chunk_store(settings: Settings) -> "ChunkStore":
    if settings.object_store_url is not None:
        from inferplane.server.artifact.object_chunk_store import ObjectChunkStore

        return ObjectChunkStore.from_url(settings.object_store_url)
    from inferplane.server.artifact.local_chunk_store import LocalChunkStore

    return await LocalChunkStore.open(settings.data_dir / "blobs")


_COMPOSERS: dict[ServiceName, Callable[[Core], Awaitable[None]]] = {
    ServiceName.AUTH: _compose_auth,
    ServiceName.ARTIFACT: _compose_artifact,
    ServiceName.INFERENCE: _compose_inference,
    ServiceName.REPORTING: _compose_reporting,
}
