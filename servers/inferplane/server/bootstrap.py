"""The only composition root: puts together what every service is built on, lets the service's own `compose` add
the rest, and takes it apart again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module

import grpc
from prometheus_client import CollectorRegistry

from inferplane.server.access.admission import Admission
from inferplane.server.access.source import PolicySource, parts_of
from inferplane.server.identity.verification import JwksCache, Verifier
from inferplane.server.identity.workloads import WorkloadSigner, load_workload_keys
from inferplane.server.keys import MasterKey
from inferplane.server.rpc.channels import channel_to, jwks_of_auth
from inferplane.server.rpc.interceptors import Guards
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.mutations import Mutations
from inferplane.server.rpc.server import RpcServer
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.database import Database, database_url
from inferplane.server.storage.pages import PageTokens
from inferplane.server.storage.schema import check_version
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tasks import Tasks

__all__ = ["DATABASE", "HOUSEKEEPING_INTERVAL", "Core", "RunningService", "run_service"]

DATABASE = "database"
HOUSEKEEPING_INTERVAL = 3600.0


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
    admission: Admission
    jwks: JwksCache
    deadlines: DeadlinePolicy
    registry: CollectorRegistry
    server: RpcServer
    stack: AsyncExitStack
    tasks: Tasks

    def channel(self, service: ServiceName) -> grpc.aio.Channel:
        """A channel to another service, closed with this one."""
        return channel_to(service, self.settings, self.stack)


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
    source = PolicySource(url, role, settings.policy_max_staleness, parts_of(service))
    async with AsyncExitStack() as stack:
        core = _core(service, settings, source, stack)
        stack.push_async_callback(core.database.close)
        stack.push_async_callback(core.tasks.stop)
        core.policy.on_availability(lambda up: core.server.health.report(DATABASE, up))
        core.tasks.start("policy", core.policy.run)
        core.tasks.start("slow_bodies", core.server.bodies.sweep)
        core.tasks.start("running_streams", core.server.calls.sweep)
        core.tasks.every(HOUSEKEEPING_INTERVAL, "delete_old_answers", core.units_of_work.delete_old_answers)
        # Imported by name: each process loads its own service only, since all four would cost it 50 MB more.
        await import_module(f"inferplane.server.{service}.compose").compose(core)
        await core.policy.first_snapshot()
        ports = await core.server.start(*addresses)
        stack.push_async_callback(core.server.stop)
        yield RunningService(core.server, core.policy, core.registry, ports)


def _core(service: ServiceName, settings: Settings, policy: PolicySource, stack: AsyncExitStack) -> Core:
    master = MasterKey.load(settings.master_key_path)
    database = Database(settings, service)
    units_of_work = UnitOfWorkFactory(database, master)
    registry = CollectorRegistry()
    jwks = JwksCache(jwks_of_auth(settings, stack))
    verifier = Verifier(jwks, load_workload_keys(settings.keys_dir), service)
    deadlines = DeadlinePolicy(settings.unary_deadline, settings.stream_idle_limit, settings.stream_minimum_rate)
    admission = Admission(verifier, policy.current)
    guards = Guards(admission=admission, deadlines=deadlines, registry=registry)
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
        admission=admission,
        jwks=jwks,
        deadlines=deadlines,
        registry=registry,
        server=RpcServer(settings, guards, max_message_size=message_size),
        stack=stack,
        tasks=Tasks(registry),
    )
