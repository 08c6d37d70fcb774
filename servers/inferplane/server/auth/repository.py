"""Auth's SQL."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.server.auth.guesses import FailedSignIns
from inferplane.server.auth.identities import Grant, User
from inferplane.server.auth.sessions import RefreshRow, Session
from inferplane.server.auth.tables import (
    failed_sign_in,
    login_attempt,
    refresh_token,
    role_grant,
    session,
    signing_key,
    user_account,
)
from inferplane.server.auth.tokens import SealedKey
from inferplane.server.storage.pages import Page
from inferplane.server.storage.unit_of_work import UnitOfWork

__all__ = ["AuthReader", "AuthRepository"]

SIGNING_KEY_LOCK = 0x6B6579
ADMINISTRATION_LOCK = 0x61646D


def _grant(row: Any) -> Grant:
    return Grant(row.id, row.subject, row.role, row.scope, row.created_at, row.creator)


class AuthReader:
    """Reads, and the upkeep that leaves no audit event, on any connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def password_hash(self, username: str) -> str | None:
        """The stored hash; None if there is no such user."""
        query = sa.select(user_account.c.password_hash).where(user_account.c.username == username)
        return await self._connection.scalar(query)

    async def users(self, page: Page) -> tuple[list[User], str | None]:
        """One page by name, and the sort key to go on after."""
        query = sa.select(user_account).order_by(user_account.c.username).limit(page.size + 1)
        if page.after is not None:
            query = query.where(user_account.c.username > page.after)
        rows = (await self._connection.execute(query)).all()
        users = [User(row.username, row.created_at) for row in rows[: page.size]]
        return users, users[-1].username if len(rows) > page.size else None

    async def grants(self, subject: str, page: Page) -> tuple[list[Grant], str | None]:
        """One page by age (ids are UUIDv7), and the sort key to go on after."""
        query = sa.select(role_grant).order_by(role_grant.c.id).limit(page.size + 1)
        if subject:
            query = query.where(role_grant.c.subject == subject)
        if page.after is not None:
            query = query.where(role_grant.c.id > UUID(page.after))
        rows = (await self._connection.execute(query)).all()
        grants = [_grant(row) for row in rows[: page.size]]
        return grants, str(grants[-1].id) if len(rows) > page.size else None

    async def signing_keys(self) -> Sequence[SealedKey]:
        """All keys, newest first."""
        rows = await self._connection.execute(sa.select(signing_key).order_by(signing_key.c.created_at.desc()))
        return [SealedKey(row.kid, row.private_jwk, row.public_jwk, row.created_at) for row in rows]

    async def delete_expired(self, at: datetime, windows_before: datetime) -> None:
        """Delete sessions that ended by age, with their tokens, and windows of guesses that are over."""
        await self._connection.execute(sa.delete(session).where(session.c.expires_at < at))
        await self._connection.execute(sa.delete(login_attempt).where(login_attempt.c.window_start <= windows_before))

    async def charge_guess(self, username: str, device: str, at: datetime, since: datetime, most: int) -> bool:
        """Count one guess, in a new window if the last began at `since` or before.

        Whether there was room for it: of one window at most `most` are counted.
        """
        table = login_attempt
        over = table.c.window_start <= since
        statement = postgresql.insert(table).values(username=username, device=device, attempts=1, window_start=at)
        statement = statement.on_conflict_do_update(
            index_elements=[table.c.username, table.c.device],
            set_={
                "attempts": sa.case((over, 1), else_=table.c.attempts + 1),
                "window_start": sa.case((over, at), else_=table.c.window_start),
            },
            where=sa.or_(over, table.c.attempts < most),
        )
        counted = await self._connection.execute(statement.returning(table.c.attempts))
        return counted.one_or_none() is not None

    async def guess_window_start(self, username: str, device: str) -> datetime | None:
        """When the window began in which guesses are counted."""
        mine = sa.and_(login_attempt.c.username == username, login_attempt.c.device == device)
        return await self._connection.scalar(sa.select(login_attempt.c.window_start).where(mine))

    async def count_failed_sign_in(self, resource: str, at: datetime, *, failures: int = 0, refused: int = 0) -> None:
        """Count failed sign-ins that the audit is yet to tell of."""
        table = failed_sign_in
        values = {"minute": at.replace(second=0, microsecond=0), "resource": resource}
        statement = postgresql.insert(table).values(**values, failures=failures, refused=refused)
        statement = statement.on_conflict_do_update(
            index_elements=[table.c.minute, table.c.resource],
            set_={"failures": table.c.failures + failures, "refused": table.c.refused + refused},
        )
        await self._connection.execute(statement)


class AuthRepository(AuthReader):
    """Writes, in a unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        super().__init__(unit.connection)
        self.record = unit.record

    async def add_user(self, user: User, password_hash: str) -> bool:
        """Whether the user was new."""
        statement = postgresql.insert(user_account).on_conflict_do_nothing()
        values = {"username": user.username, "password_hash": password_hash, "created_at": user.created_at}
        return bool((await self._connection.execute(statement, values)).rowcount)

    async def user_exists(self, username: str) -> bool:
        """Whether there is such a user."""
        return await self.password_hash(username) is not None

    async def add_grant(self, grant: Grant) -> Grant:
        """Add a grant, or answer the one that says the same."""
        statement = postgresql.insert(role_grant).on_conflict_do_nothing()
        values = {name: getattr(grant, name) for name in role_grant.c.keys()}  # noqa: SIM118 - columns, not a dict
        if (await self._connection.execute(statement, values)).rowcount:
            return grant
        same = sa.and_(
            role_grant.c.subject == grant.subject,
            role_grant.c.role == grant.role,
            role_grant.c.scope == grant.scope,
        )
        return _grant((await self._connection.execute(sa.select(role_grant).where(same))).one())

    async def grant_for_update(self, grant_id: UUID) -> Grant | None:
        """The grant. All grants that could make up the administrators are locked, so that two revocations
        cannot each believe that the other's administrator remains."""
        admins = sa.and_(role_grant.c.role == "admin", role_grant.c.scope == "*")
        query = sa.select(role_grant).where(sa.or_(role_grant.c.id == grant_id, admins))
        rows = (await self._connection.execute(query.order_by(role_grant.c.id).with_for_update())).all()
        return next((_grant(row) for row in rows if row.id == grant_id), None)

    async def count_admins(self) -> int:
        """How many grants give the whole installation."""
        query = sa.select(sa.func.count()).where(role_grant.c.role == "admin", role_grant.c.scope == "*")
        return int(await self._connection.scalar(query) or 0)

    async def delete_grant(self, grant_id: UUID) -> None:
        """Delete a grant."""
        await self._connection.execute(sa.delete(role_grant).where(role_grant.c.id == grant_id))

    async def refund_guess(self, username: str, device: str) -> None:
        """Take back what a right password was charged."""
        mine = sa.and_(login_attempt.c.username == username, login_attempt.c.device == device)
        counted = sa.update(login_attempt).where(mine, login_attempt.c.attempts > 0)
        await self._connection.execute(counted.values(attempts=login_attempt.c.attempts - 1))

    async def take_failed_sign_ins(self, before: datetime) -> Sequence[FailedSignIns]:
        """Remove and answer what was counted in minutes before `before`, oldest first."""
        taken = sa.delete(failed_sign_in).where(failed_sign_in.c.minute < before).returning(*failed_sign_in.c)
        rows = (await self._connection.execute(taken)).all()
        counts = [FailedSignIns(row.minute, row.resource, row.failures, row.refused) for row in rows]
        return sorted(counts, key=lambda count: (count.minute, count.resource))

    async def add_session(self, new: Session, created_at: datetime) -> None:
        """Add a session."""
        values = {
            "id": new.id,
            "username": new.username,
            "created_at": created_at,
            "expires_at": new.expires_at,
            "tokens_expire_at": new.tokens_expire_at,
        }
        await self._connection.execute(sa.insert(session), values)

    async def prolong_session(self, renewed: Session) -> None:
        """Move a session's end, and that of its access tokens: never to before one that was given longer may live."""
        latest = sa.func.greatest(session.c.tokens_expire_at, renewed.tokens_expire_at)
        values = {"expires_at": renewed.expires_at, "tokens_expire_at": latest}
        await self._connection.execute(sa.update(session).where(session.c.id == renewed.id).values(values))

    async def add_refresh_token(self, token_hash: bytes, session_id: UUID, issued_at: datetime) -> None:
        """Add a refresh token by its hash."""
        await self._connection.execute(
            sa.insert(refresh_token), {"token_hash": token_hash, "session_id": session_id, "issued_at": issued_at}
        )

    async def refresh_row_for_update(self, token_hash: bytes) -> RefreshRow | None:
        """The token and its session, locked: of two uses at once the second must see the first."""
        query = (
            sa.select(refresh_token.c.used_at, refresh_token.c.successor, session)
            .join(session)
            .where(refresh_token.c.token_hash == token_hash)
            .with_for_update()
        )
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            return None
        return RefreshRow(row.id, row.username, row.used_at, row.successor, row.expires_at, row.ended_at is not None)

    async def refresh_token_used(self, token_hash: bytes) -> bool:
        """Whether the token was used. Its session must be locked."""
        query = sa.select(refresh_token.c.used_at).where(refresh_token.c.token_hash == token_hash)
        return await self._connection.scalar(query) is not None

    async def use_refresh_token(self, token_hash: bytes, at: datetime, successor: bytes) -> None:
        """Mark a token as used, and keep what follows it."""
        used = sa.update(refresh_token).where(refresh_token.c.token_hash == token_hash)
        await self._connection.execute(used.values(used_at=at, successor=successor))

    async def end_session(self, session_id: UUID, at: datetime) -> None:
        """End a session if it is open."""
        open_one = sa.and_(session.c.id == session_id, session.c.ended_at.is_(None))
        await self._connection.execute(sa.update(session).where(open_one).values(ended_at=at))

    async def lock_signing_keys(self) -> None:
        """Let one process at a time make the first key."""
        await self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SIGNING_KEY_LOCK)))

    async def lock_administration(self) -> None:
        """Let one process at a time make the first administrator."""
        await self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADMINISTRATION_LOCK)))

    async def add_signing_key(self, key: SealedKey) -> None:
        """Add a key."""
        await self._connection.execute(
            sa.insert(signing_key),
            {
                "kid": key.kid,
                "private_jwk": key.private_jwk,
                "public_jwk": key.public_jwk,
                "created_at": key.created_at,
            },
        )
