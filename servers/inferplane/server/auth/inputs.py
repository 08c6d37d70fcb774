"""Auth's validated requests."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from inferplane.server.access.roles import ROLE_PERMISSIONS
from inferplane.server.names import GrantRef, Scope, SubjectName, UserId
from inferplane.server.rpc.validation import Input

__all__ = ["GrantFilter", "GrantToRevoke", "LoginInput", "NewGrant", "NewUser"]


def _role(name: str) -> str:
    if name not in ROLE_PERMISSIONS:
        raise ValueError(f"must be one of {', '.join(ROLE_PERMISSIONS)}")
    return name


Role = Annotated[str, AfterValidator(_role)]


class LoginInput(Input):
    username: UserId
    password: Annotated[str, Field(min_length=1, max_length=1024)]


class NewUser(Input):
    user_id: UserId
    password: Annotated[str, Field(min_length=12, max_length=1024)]


class NewGrant(Input):
    subject: SubjectName
    role: Role
    scope: Scope


class GrantFilter(Input):
    subject: Literal[""] | SubjectName


class GrantToRevoke(Input):
    name: GrantRef
