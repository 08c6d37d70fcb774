"""A mutation: its rows, its audit events and its stored answer, committed at once or not at all."""

import base64
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.ids import now
from inferplane.server.keys import MasterKey
from inferplane.server.storage.audit import Actor, Detail, audit_event, event_row
from inferplane.server.storage.database import Database

__all__ = ["IDEMPOTENCY_LIFETIME", "UnitOfWork", "UnitOfWorkFactory", "idempotency_record"]

IDEMPOTENCY_LIFETIME = timedelta(hours=24)
MAX_KEY_LENGTH = 128

idempotency_record = sa.table(
    # Each service has its own, found by its search path.
    "idempotency_record",
    sa.column("caller", sa.Text),
    sa.column("method", sa.Text),
    sa.column("key", sa.Text),
    sa.column("fingerprint", sa.LargeBinary),
    sa.column("answer", sa.LargeBinary),
    sa.column("created_at", sa.DateTime(timezone=True)),
)


class UnitOfWork:
    """One transaction that cannot be committed without an audit event."""

    def __init__(self, connection: AsyncConnection, service: str, actor: Actor, keys: "IdempotencyKeys") -> None:
        self.connection = connection
        self.actor = actor
        self._service = service
        self._keys = keys
        self._events: list[dict[str, object]] = []
        self._claim: sa.ColumnElement[bool] | None = None

    def record(self, action: str, resource: str, **detail: Detail) -> None:
        """Note what this unit of work does; `detail` holds no secrets, and `Changed` where something was before."""
        self._events.append(event_row(self._service, self.actor, action, resource, detail))

    async def claim(self, method: str, key: str, body: bytes) -> bytes | None:
        """Claim an idempotency key for this request; the answer given earlier if it was claimed before.

        Another transaction that holds the same claim is waited for. An empty key claims nothing. Raises
        IDEMPOTENCY_KEY_REUSED where the key came with another body.
        """
        if not key:
            return None
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise invalid_field("idempotency_key", f"must be at most {MAX_KEY_LENGTH} printable characters")
        table = idempotency_record
        mine = sa.and_(table.c.caller == self.actor.subject, table.c.method == method, table.c.key == key)
        fingerprint = self._keys.fingerprint(body)
        await self.connection.execute(sa.delete(table).where(mine, table.c.created_at < now() - IDEMPOTENCY_LIFETIME))
        claimed = await self.connection.execute(
            sa.text(
                "INSERT INTO idempotency_record (caller, method, key, fingerprint, created_at)"
                " VALUES (:caller, :method, :key, :fingerprint, :created_at) ON CONFLICT DO NOTHING"
            ),
            {
                "caller": self.actor.subject,
                "method": method,
                "key": key,
                "fingerprint": fingerprint,
                "created_at": now(),
            },
        )
        if claimed.rowcount:
            self._claim = mine
            return None
        row = (await self.connection.execute(sa.select(table.c.fingerprint, table.c.answer).where(mine))).one()
        if not hmac.compare_digest(row.fingerprint, fingerprint):
            raise InferplaneError(ErrorReason.ERROR_REASON_IDEMPOTENCY_KEY_REUSED)
        return self._keys.open(row.answer)

    async def commit(self, answer: bytes = b"") -> None:
        """Write the audit events, store the answer under the claimed key, and commit.

        Raises RuntimeError where nothing was recorded: a mutation without an audit event is a defect.
        """
        if not self._events:
            raise RuntimeError("a mutation must record an audit event")
        await self.connection.execute(sa.insert(audit_event), self._events)
        if self._claim is not None:
            await self.connection.execute(
                sa.update(idempotency_record).where(self._claim).values(answer=self._keys.seal(answer))
            )
        await self.connection.commit()


class IdempotencyKeys:
    """Keeps bodies and answers unreadable to who reads the database: keyed fingerprints, encrypted answers."""

    def __init__(self, master: MasterKey) -> None:
        self._fingerprint_key = master.derive("idempotency-fingerprint")
        self._cipher = Fernet(base64.urlsafe_b64encode(master.derive("idempotency-answer")))

    def fingerprint(self, body: bytes) -> bytes:
        """HMAC-SHA-256 of a request."""
        return hmac.digest(self._fingerprint_key, body, "sha256")

    def seal(self, answer: bytes) -> bytes:
        """Encrypt an answer."""
        return self._cipher.encrypt(answer)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt an answer."""
        return self._cipher.decrypt(sealed)


class UnitOfWorkFactory:
    """Begins units of work on one service's database."""

    def __init__(self, database: Database, master: MasterKey) -> None:
        self._database = database
        self._keys = IdempotencyKeys(master)

    @asynccontextmanager
    async def __call__(self, actor: Actor) -> AsyncIterator[UnitOfWork]:
        """Begin; leaving without `commit` rolls back."""
        async with self._database.transaction() as connection:
            yield UnitOfWork(connection, self._database.service.value, actor, self._keys)

    async def delete_old_answers(self) -> None:
        """Delete the idempotency records that are past their lifetime."""
        async with self._database.transaction() as connection:
            await connection.execute(
                sa.delete(idempotency_record).where(idempotency_record.c.created_at < now() - IDEMPOTENCY_LIFETIME)
            )
            await connection.commit()
