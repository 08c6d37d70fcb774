"""Sessions: opened by a password, kept alive by rotating refresh tokens, ended by logout or by reuse."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now, uuid7

__all__ = ["MAX_FAILURES", "RefreshRow", "Session", "SessionStore", "Sessions"]

MAX_FAILURES = 10
FAILURE_WINDOW = timedelta(minutes=5)
TOKEN_PREFIX = "ipr_"  # noqa: S105 - lets secret scanners find leaked tokens


@dataclass(frozen=True, slots=True)
class Session:
    """An open session and the refresh token that it was just given."""

    id: UUID
    username: str
    refresh_token: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RefreshRow:
    """A refresh token as stored, with its session."""

    session_id: UUID
    username: str
    used: bool
    expires_at: datetime
    ended: bool


class SessionStore(Protocol):
    """What `Sessions` needs of a unit of work."""

    def record(self, action: str, resource: str, **detail: str | int) -> None: ...
    async def failures(self, username: str, since: datetime) -> tuple[int, datetime] | None: ...
    async def add_failure(self, username: str, at: datetime, since: datetime) -> None: ...
    async def clear_failures(self, username: str) -> None: ...
    async def add_session(
        self, session_id: UUID, username: str, created_at: datetime, expires_at: datetime
    ) -> None: ...
    async def add_refresh_token(self, token_hash: bytes, session_id: UUID, issued_at: datetime) -> None: ...
    async def refresh_row_for_update(self, token_hash: bytes) -> RefreshRow | None: ...
    async def use_refresh_token(self, token_hash: bytes, at: datetime, session_expires_at: datetime) -> None: ...
    async def end_session(self, session_id: UUID, at: datetime) -> None: ...


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Sessions:
    """The life of sessions. `lifetime` is in seconds and starts anew with each refresh."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = timedelta(seconds=lifetime)

    async def check_throttle(self, store: SessionStore, username: str) -> None:
        """Raises RATE_LIMITED after too many failures in a row."""
        found = await store.failures(username, now() - FAILURE_WINDOW)
        if found is not None and found[0] >= MAX_FAILURES:
            wait = (found[1] + FAILURE_WINDOW - now()).total_seconds()
            raise InferplaneError(ErrorReason.ERROR_REASON_RATE_LIMITED, retry_after=max(wait, 1.0))

    async def fail_login(self, store: SessionStore, username: str) -> None:
        """Count a failure."""
        await store.add_failure(username, now(), now() - FAILURE_WINDOW)
        store.record("session.login_failed", f"users/{username}")

    async def open(self, store: SessionStore, username: str) -> Session:
        """Open a session for a user whose password was right."""
        await store.clear_failures(username)
        session_id, created_at = uuid7(), now()
        await store.add_session(session_id, username, created_at, created_at + self._lifetime)
        store.record("session.open", f"sessions/{session_id}", user=username)
        return await self._with_token(store, session_id, username, created_at)

    async def refresh(self, store: SessionStore, refresh_token: str) -> Session | InferplaneError:
        """The session with its next refresh token, or the error to raise once the change is committed.

        A token that was used before ends its session (RFC 9700, section 4.14.2), and that must be kept.
        """
        row = await store.refresh_row_for_update(_hash(refresh_token))
        if row is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, detail="unknown refresh token")
        if row.ended or row.expires_at <= now():
            raise InferplaneError(ErrorReason.ERROR_REASON_SESSION_ENDED)
        if row.used:
            await store.end_session(row.session_id, now())
            store.record("session.refresh_token_reused", f"sessions/{row.session_id}", user=row.username)
            return InferplaneError(ErrorReason.ERROR_REASON_REFRESH_TOKEN_REUSED)
        await store.use_refresh_token(_hash(refresh_token), now(), now() + self._lifetime)
        store.record("session.refresh", f"sessions/{row.session_id}", user=row.username)
        return await self._with_token(store, row.session_id, row.username, now())

    async def end(self, store: SessionStore, session_id: UUID) -> None:
        """End a session; one that has ended stays so."""
        await store.end_session(session_id, now())
        store.record("session.end", f"sessions/{session_id}")

    async def _with_token(self, store: SessionStore, session_id: UUID, username: str, at: datetime) -> Session:
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        await store.add_refresh_token(_hash(token), session_id, at)
        return Session(session_id, username, token, at + self._lifetime)
