"""Auth's validated requests."""

from typing import Annotated

from pydantic import AfterValidator, Field

from inferplane.server.access.roles import ROLE_PERMISSIONS
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


Role = Annotated[str, AfterValidator(_role)]


class LoginInput(Input):
    username: UserId
    password: Annotated[str, Field(min_length=1, max_length=1024)]
    device_token: Annotated[str, Field(max_length=256)]


class NewGrant(Input):
    subject: SubjectName
    role: Role
    scope: Scope


class GrantFilter(Input):
    subject: Annotated[str, AfterValidator(_subject_or_all)]


class GrantToRevoke(Input):
    name: GrantRef
