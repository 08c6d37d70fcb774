"""Sessions, users and grants."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc

from inferplane.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    identity_service_pb2,
    identity_service_pb2_grpc,
)
from inferplane.auth.v1.grant_pb2 import Grant
from inferplane.auth.v1.session_pb2 import Identity
from inferplane.auth.v1.user_pb2 import User
from inferplane.client import names
from inferplane.client.calls import new_key, unary, walk
from inferplane.client.errors import Unauthenticated
from inferplane.client.session import Session
from inferplane.client.tokens import Tokens


class AuthClient:
    """The auth service; `service` and `identity` are the generated stubs.

    Every method raises InferplaneClientError; `timeout` is in seconds, None for the client's default.
    """

    def __init__(self, channel: grpc.aio.Channel, session: Session) -> None:
        self.service = auth_service_pb2_grpc.AuthServiceStub(channel)
        self.identity = identity_service_pb2_grpc.IdentityServiceStub(channel)
        self._session = session

    async def login(self, username: str, password: str, *, timeout: float | None = None) -> Tokens:
        """Open a session, which all further calls of this client use; raises Unauthenticated."""
        device_token = await self._session.device_token(username)
        request = auth_service_pb2.LoginRequest(username=username, password=password, device_token=device_token)
        answer = await unary(self.service.Login, request, timeout)
        tokens = Tokens.of(answer.tokens)
        await self._session.begin(tokens, username, answer.device_token)
        return tokens

    async def refresh(self) -> str:
        """Renew the tokens now and give the new access token; raises Unauthenticated."""
        return await self._session.renew(await self.access_token())

    async def access_token(self) -> str:
        """Give an access token good for the next call, refreshed if need be; raises Unauthenticated."""
        token = await self._session.access_token()
        if token is None:
            raise Unauthenticated("not logged in", reason="CREDENTIALS_MISSING")
        return token

    async def logout(self, *, timeout: float | None = None) -> None:
        """End the session and forget its tokens; a session that is over already is no error.

        Where the service could not be asked the tokens stay, so that it can be asked again.
        """
        with contextlib.suppress(Unauthenticated):
            await unary(self.service.Logout, auth_service_pb2.LogoutRequest(), timeout)
        await self._session.replace(None)

    async def whoami(self, *, timeout: float | None = None) -> Identity:
        """Tell who the caller is and which roles they hold."""
        answer = await unary(self.service.WhoAmI, auth_service_pb2.WhoAmIRequest(), timeout)
        return answer.identity

    async def jwks(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Give the public keys that verify access tokens, as a JSON Web Key Set (RFC 7517)."""
        answer = await unary(self.service.GetJwks, auth_service_pb2.GetJwksRequest(), timeout)
        keys: dict[str, Any] = json.loads(answer.jwks_json)
        return keys

    async def create_user(self, username: str, password: str, *, timeout: float | None = None) -> User:
        """Create a user, who may do nothing yet; the password takes 12 to 1,024 bytes. Raises AlreadyExists."""
        request = identity_service_pb2.CreateUserRequest(
            user_id=names.user_id(username), password=password, idempotency_key=new_key()
        )
        return await unary(self.identity.CreateUser, request, timeout)

    def list_users(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[User]:
        """Give all users, by name."""
        return walk(
            self.identity.ListUsers,
            lambda token: identity_service_pb2.ListUsersRequest(page_size=page_size, page_token=token),
            lambda page: page.users,
            timeout,
        )

    async def grant(self, role: str, *, to: str, on: str, timeout: float | None = None) -> Grant:
        """Give the user `to` a role on a glob of model and deployment names; raises NotFound."""
        request = identity_service_pb2.GrantRoleRequest(
            subject=f"users/{names.user_id(to)}",
            role=names.role(role),
            scope=names.scope(on),
            idempotency_key=new_key(),
        )
        return await unary(self.identity.GrantRole, request, timeout)

    async def revoke(self, grant: str, *, timeout: float | None = None) -> None:
        """Take a grant back, by its id or its name `grants/{id}`; raises NotFound, FailedPrecondition."""
        name = grant if grant.startswith("grants/") else f"grants/{grant}"
        request = identity_service_pb2.RevokeGrantRequest(name=name, idempotency_key=new_key())
        await unary(self.identity.RevokeGrant, request, timeout)

    def list_grants(
        self, *, of: str | None = None, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Grant]:
        """Give all grants, or only those of the user `of`, oldest first."""
        subject = f"users/{names.user_id(of)}" if of is not None else ""
        return walk(
            self.identity.ListGrants,
            lambda token: identity_service_pb2.ListGrantsRequest(
                subject=subject, page_size=page_size, page_token=token
            ),
            lambda page: page.grants,
            timeout,
        )
