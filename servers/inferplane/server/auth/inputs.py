"""Auth's validated requests."""

from typing import Annotated

from pydantic import AfterValidator, Field

from inferplane.server.access.roles import ROLE_PERMISSIONS
from inferplane.server.auth.identities import MAX_PASSWORD
from inferplane.server.names import USER, GrantRef, Scope, SubjectName, UserId
from inferplane.server.rpc.validation import Input

__all__ = ["GrantFilter", "GrantToRevoke", "LoginInput", "NewGrant"]


def _role(name: str) -> str:
    if name not in ROLE_PERMISSIONS:
        raise ValueError(f"must be one of {', '.join(ROLE_PERMISSIONS)}")
    return name


def _subject_or_all(name: str) -> str:
    if name:
        USER.parse(name)
    return name


def _password(text: str) -> str:
    # No password of ours is longer, and a hash takes time for each byte.
    if not 0 < len(text.encode()) <= MAX_PASSWORD:
        raise ValueError(f"must be 1 to {MAX_PASSWORD} bytes")
    return text


Role = Annotated[str, AfterValidator(_role)]


class LoginInput(Input):
    username: UserId
    password: Annotated[str, AfterValidator(_password)]
    device_token: Annotated[str, Field(max_length=256)]


class NewGrant(Input):
    subject: SubjectName
    role: Role
    scope: Scope


class GrantFilter(Input):
    subject: Annotated[str, AfterValidator(_subject_or_all)]


class GrantToRevoke(Input):
    name: GrantRef
