"""Users and grants: the rules, free of transport and storage."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.auth.passwords import Passwords
from inferplane.server.errors import FieldViolation, InferplaneError
from inferplane.server.ids import now, uuid7
from inferplane.server.names import GRANT, USER, USER_ID
from inferplane.server.storage.audit import Changed

if TYPE_CHECKING:
    from inferplane.server.auth.repository import AuthRepository

__all__ = ["Grant", "Identities", "NewUser", "User"]

MIN_PASSWORD = 12
MAX_PASSWORD = 1024
"""Lengths of passwords in bytes of UTF-8."""


@dataclass(frozen=True, slots=True)
class NewUser:
    """Somebody to be made a user, by whatever way in. Raises INVALID_FIELD for a bad name or password."""

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        violations = tuple(self._violations())
        if violations:
            raise InferplaneError(ErrorReason.ERROR_REASON_INVALID_FIELD, violations=violations)

    def _violations(self) -> Iterator[FieldViolation]:
        if re.fullmatch(USER_ID, self.username) is None:
            yield "user_id", f"must match {USER_ID}"
        if not MIN_PASSWORD <= len(self.password.encode()) <= MAX_PASSWORD:
            yield "password", f"must be {MIN_PASSWORD} to {MAX_PASSWORD} bytes"


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


class Identities:
    """Creates users, gives and takes roles."""

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    async def hash_password(self, new: NewUser) -> str:
        """Done before the transaction begins: it takes longer than everything in it."""
        return await self._passwords.hash(new.password)

    async def create_user(self, store: "AuthRepository", new: NewUser, password_hash: str) -> User:
        """Raises USER_EXISTS."""
        user = User(new.username, now())
        if not await store.add_user(user, password_hash):
            raise InferplaneError(ErrorReason.ERROR_REASON_USER_EXISTS, user=user.username)
        store.record("user.create", USER.format(user.username))
        return user

    async def grant_role(self, store: "AuthRepository", subject: str, role: str, scope: str, creator: str) -> Grant:
        """Give `role` on `scope`; a grant that exists is answered as it is. Raises USER_NOT_FOUND."""
        username = subject.removeprefix("users/")
        if not await store.user_exists(username):
            raise InferplaneError(ErrorReason.ERROR_REASON_USER_NOT_FOUND, user=username)
        grant = await store.add_grant(Grant(uuid7(), subject, role, scope, now(), creator))
        store.record("grant.add", GRANT.format(grant.id), subject=subject, role=role, scope=scope)
        return grant

    async def revoke_grant(self, store: "AuthRepository", grant_id: UUID) -> None:
        """Raises GRANT_NOT_FOUND, and LAST_ADMIN where nobody else administers the whole installation."""
        grant = await store.grant_for_update(grant_id)
        if grant is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_GRANT_NOT_FOUND, grant=str(grant_id))
        if grant.role == "admin" and grant.scope == "*" and await store.count_admins() == 1:
            raise InferplaneError(ErrorReason.ERROR_REASON_LAST_ADMIN)
        await store.delete_grant(grant_id)
        held = {"subject": grant.subject, "role": grant.role, "scope": grant.scope}
        gone = {name: Changed(value, None) for name, value in held.items()}
        store.record("grant.remove", GRANT.format(grant_id), **gone)
