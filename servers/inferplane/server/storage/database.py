"""The engine of one service: its role, its pool, and what a failing database looks like to callers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import asyncpg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate
from inferplane.server.settings import ServiceName, Settings

__all__ = ["Database", "asyncpg_dsn", "database_url", "lone_connection", "role_of", "works_for", "works_for_nobody"]

CONNECT_TIMEOUT = 3.0
COMMAND_TIMEOUT = 15.0
ANSWER_TIMEOUT = 2.0
"""Seconds for an answer to who follows the policy, or leads: a connection that is slower is taken for gone."""
POOL_TIMEOUT = 5.0
_FULL = "too much waits for the database"
WAITING = 1000
WAITING_EACH = 500
"""Transactions that may wait for a connection, of all callers and of one."""

ENDS_WITH_US = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "idle_in_transaction_session_timeout": "60000",
}
"""Settings of each connection: a machine that vanishes without a word must not keep its locks for hours."""

_OUTAGES = (OperationalError, InterfaceError, PoolTimeoutError, OSError, TimeoutError)
_OUTAGE_STATES = ("08", "57P", "53")
"""SQLSTATE classes of a lost connection, an operator's intervention and exhausted resources."""


def _nobody() -> str:
    return ""


_work_of: ContextVar[Callable[[], str]] = ContextVar("inferplane_work_of", default=_nobody)


def works_for(caller: Callable[[], str]) -> None:
    """What this task does from now on, it does for whom `caller` names when it is asked."""
    _work_of.set(caller)


def works_for_nobody() -> None:
    """What this task does from now on, it does for the service itself, as if it had never been told otherwise."""
    _work_of.set(_nobody)


def role_of(service: ServiceName) -> str:
    """The database role that a service works as."""
    return f"inferplane_{service}"


def database_url(settings: Settings, service: ServiceName) -> tuple[URL, str | None]:
    """The URL to connect to and the role to take there; no role where the service has a login of its own."""
    own = settings.service_database_urls.get(service)
    if own is not None:
        return make_url(own.get_secret_value()), None
    if settings.database_url is None:
        raise ValueError("no database: set INFERPLANE_DATABASE_URL, or let `inferplane up` start its own")
    return make_url(settings.database_url.get_secret_value()), role_of(service)


def asyncpg_dsn(url: URL) -> str:
    """The same database in the form that asyncpg itself takes."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.orig is not None:
        state = getattr(error.orig, "sqlstate", None) or ""
        # A table that a migration has changed meanwhile is known anew when the call is repeated.
        migrated = isinstance(error.orig.__cause__, asyncpg.InvalidCachedStatementError)
        return migrated or isinstance(error, OperationalError | InterfaceError) or state.startswith(_OUTAGE_STATES)
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_OUTAGE_STATES)
    return isinstance(error, (*_OUTAGES, asyncpg.InterfaceError))


@asynccontextmanager
async def outages_as_unavailable() -> AsyncIterator[None]:
    """Turn the many faces of an unreachable database into DEPENDENCY_UNAVAILABLE."""
    try:
        yield
    except InferplaneError:
        raise
    except Exception as error:
        if not _is_outage(error):
            raise
        raise InferplaneError(
            ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, retry_after=1.0, dependency="database"
        ) from error


async def lone_connection(url: URL, role: str | None, purpose: str) -> asyncpg.Connection:
    """A connection outside of any pool, to listen or to hold a session's lock; the caller closes it.

    It is called `inferplane-` and `purpose` in the database, where a migration looks for services.
    """
    settings = ENDS_WITH_US | {"application_name": f"inferplane-{purpose}"} | ({"role": role} if role else {})
    return await asyncpg.connect(
        asyncpg_dsn(url), timeout=ANSWER_TIMEOUT, command_timeout=ANSWER_TIMEOUT, server_settings=settings
    )


class Database:
    """Connections of one service, taken as its role and with its schema on the search path."""

    def __init__(self, settings: Settings, service: ServiceName) -> None:
        url, role = database_url(settings, service)
        server_settings = {
            "application_name": f"inferplane-{service}",
            "search_path": service.value,
            **ENDS_WITH_US,
        }
        if role is not None:
            server_settings["role"] = role
        self.service = service
        size = settings.database_pool_size
        most, each = 2 * size, max(1, 2 * size * 3 // 4)
        self._turns = FairGate(
            _FULL, capacity=most, each=each, waiting=WAITING, waiting_each=WAITING_EACH, displace=True
        )
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=size,
            max_overflow=size,
            pool_timeout=POOL_TIMEOUT,
            pool_pre_ping=True,
            # Errors are logged, and parameters are password hashes and tokens' hashes among others.
            hide_parameters=True,
            connect_args={
                "timeout": CONNECT_TIMEOUT,
                "command_timeout": COMMAND_TIMEOUT,
                "server_settings": server_settings,
            },
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, rolled back unless it is committed inside.

        Callers take turns at the connections. Raises OVERLOADED where too many wait, and DEPENDENCY_UNAVAILABLE.
        """
        async with outages_as_unavailable(), self._turn(), self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        caller = _work_of.get()()
        try:
            async with asyncio.timeout(POOL_TIMEOUT):
                await self._turns.enter(caller, 1)
        except TimeoutError:
            raise InferplaneError.overloaded(_FULL) from None
        try:
            yield
        finally:
            self._turns.leave(caller, 1)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.shield(self._engine.dispose())
