"""Sessions: opened by a password, kept alive by rotating refresh tokens, ended by logout or by reuse."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.auth.refresh_tokens import new_token, open_successor, seal_successor, token_hash
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now, uuid7
from inferplane.server.names import SESSION

if TYPE_CHECKING:
    from inferplane.server.auth.repository import AuthRepository

__all__ = ["REFRESH_GRACE", "RefreshRow", "Session", "Sessions"]

REFRESH_GRACE = timedelta(seconds=90)
"""How long a used refresh token answers its successor again: whose answer was lost must be able to ask once more.

Much longer than a client takes for all its tries, which is 30 s.
"""


@dataclass(frozen=True, slots=True)
class Session:
    """An open session, the refresh token that it goes on with, and until when its access tokens may live."""

    id: UUID
    username: str
    refresh_token: str
    expires_at: datetime
    tokens_expire_at: datetime


@dataclass(frozen=True, slots=True)
class RefreshRow:
    """A refresh token as stored, with its session."""

    session_id: UUID
    username: str
    used_at: datetime | None
    successor: bytes | None
    expires_at: datetime
    ended: bool


class Sessions:
    """The life of sessions. `lifetime` is in seconds and starts anew with each refresh; so is `token_lifetime`, that
    of access tokens, which never outlive their session."""

    def __init__(self, lifetime: float, token_lifetime: float) -> None:
        self._lifetime = timedelta(seconds=lifetime)
        self._token_lifetime = timedelta(seconds=min(lifetime, token_lifetime))

    async def open(self, store: "AuthRepository", username: str) -> Session:
        """Open a session for a user whose password was right."""
        session = self._from_now(uuid7(), username, new_token())
        await store.add_session(session, now())
        await store.add_refresh_token(token_hash(session.refresh_token), session.id, now())
        store.record("session.open", SESSION.format(session.id), user=username)
        return session

    async def refresh(self, store: "AuthRepository", refresh_token: str) -> Session | InferplaneError:
        """The session with its next refresh token, or the error to raise once the change is committed.

        A token that was used before ends its session (RFC 9700, section 4.14.2), and that must be kept; unless its
        answer may have been lost, because it is not long ago and the successor has not been used.
        """
        row = await store.refresh_row_for_update(token_hash(refresh_token))
        if row is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, detail="unknown refresh token")
        if row.ended or row.expires_at <= now():
            raise InferplaneError(ErrorReason.ERROR_REASON_SESSION_ENDED)
        if row.used_at is None:
            return await self._rotate(store, row, refresh_token)
        successor = await self._unused_successor(store, row, refresh_token)
        if successor is not None:
            return await self._go_on(store, row, successor, "session.refresh_repeated")
        await store.end_session(row.session_id, now())
        store.record("session.refresh_token_reused", SESSION.format(row.session_id), user=row.username)
        return InferplaneError(ErrorReason.ERROR_REASON_REFRESH_TOKEN_REUSED)

    async def end(self, store: "AuthRepository", session_id: UUID) -> None:
        """End a session, and with it its access tokens; one that has ended stays so."""
        await store.end_session(session_id, now())
        store.record("session.end", SESSION.format(session_id))

    async def _rotate(self, store: "AuthRepository", row: RefreshRow, refresh_token: str) -> Session:
        successor = new_token()
        await store.use_refresh_token(token_hash(refresh_token), now(), seal_successor(refresh_token, successor))
        await store.add_refresh_token(token_hash(successor), row.session_id, now())
        return await self._go_on(store, row, successor, "session.refresh")

    async def _unused_successor(self, store: "AuthRepository", row: RefreshRow, refresh_token: str) -> str | None:
        if row.used_at is None or now() - row.used_at > REFRESH_GRACE:
            return None
        successor = open_successor(refresh_token, row.successor)
        if successor is None or await store.refresh_token_used(token_hash(successor)):
            return None
        return successor

    async def _go_on(self, store: "AuthRepository", row: RefreshRow, refresh_token: str, action: str) -> Session:
        session = self._from_now(row.session_id, row.username, refresh_token)
        await store.prolong_session(session)
        store.record(action, SESSION.format(session.id), user=session.username)
        return session

    def _from_now(self, session_id: UUID, username: str, refresh_token: str) -> Session:
        at = now()
        return Session(session_id, username, refresh_token, at + self._lifetime, at + self._token_lifetime)
