"""Users and grants: the rules, free of transport and storage."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.auth.passwords import Passwords
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now, uuid7

__all__ = ["Grant", "Identities", "IdentityStore", "User"]


@dataclass(frozen=True, slots=True)
class User:
    """A person who may log in."""

    username: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Grant:
    """A role of a subject on a glob of names."""

    id: UUID
    subject: str
    role: str
    scope: str
    created_at: datetime
    creator: str


class IdentityStore(Protocol):
    """What `Identities` needs of a unit of work."""

    def record(self, action: str, resource: str, **detail: str | int) -> None: ...
    async def add_user(self, user: User, password_hash: str) -> bool: ...
    async def user_exists(self, username: str) -> bool: ...
    async def add_grant(self, grant: Grant) -> Grant: ...
    async def grant_for_update(self, grant_id: UUID) -> Grant | None: ...
    async def count_admins(self) -> int: ...
    async def delete_grant(self, grant_id: UUID) -> None: ...


class Identities:
    """Creates users, gives and takes roles."""

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    async def hash_password(self, password: str) -> str:
        """Done before the transaction begins: it takes longer than everything in it."""
        return await self._passwords.hash(password)

    async def create_user(self, store: IdentityStore, username: str, password_hash: str) -> User:
        """Raises USER_EXISTS."""
        user = User(username, now())
        if not await store.add_user(user, password_hash):
            raise InferplaneError(ErrorReason.ERROR_REASON_USER_EXISTS, user=username)
        store.record("user.create", f"users/{username}")
        return user

    async def grant_role(self, store: IdentityStore, subject: str, role: str, scope: str, creator: str) -> Grant:
        """Give `role` on `scope`; a grant that exists is answered as it is. Raises USER_NOT_FOUND."""
        username = subject.removeprefix("users/")
        if not await store.user_exists(username):
            raise InferplaneError(ErrorReason.ERROR_REASON_USER_NOT_FOUND, user=username)
        grant = await store.add_grant(Grant(uuid7(), subject, role, scope, now(), creator))
        store.record("grant.add", f"grants/{grant.id}", subject=subject, role=role, scope=scope)
        return grant

    async def revoke_grant(self, store: IdentityStore, grant_id: UUID) -> None:
        """Raises GRANT_NOT_FOUND, and LAST_ADMIN where nobody else administers the whole installation."""
        grant = await store.grant_for_update(grant_id)
        if grant is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_GRANT_NOT_FOUND, grant=str(grant_id))
        if grant.role == "admin" and grant.scope == "*" and await store.count_admins() == 1:
            raise InferplaneError(ErrorReason.ERROR_REASON_LAST_ADMIN)
        await store.delete_grant(grant_id)
        store.record("grant.remove", f"grants/{grant_id}", subject=grant.subject, role=grant.role, scope=grant.scope)
