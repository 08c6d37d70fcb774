"""Auth's RPCs: from message to domain call to message."""

from typing import Any
from uuid import UUID

from inferplane.auth.v1 import auth_service_pb2 as auth_pb
from inferplane.auth.v1 import auth_service_pb2_grpc, grant_pb2, identity_service_pb2_grpc, session_pb2, user_pb2
from inferplane.auth.v1 import identity_service_pb2 as identity_pb
from inferplane.server.access.snapshot import PolicySnapshot
from inferplane.server.auth.convert import grant_message, token_pair, user_message
from inferplane.server.auth.identities import Identities, NewUser
from inferplane.server.auth.inputs import GrantFilter, GrantToRevoke, LoginInput, NewGrant
from inferplane.server.auth.login import Attempt, LoginFlow
from inferplane.server.auth.repository import AuthReader, AuthRepository
from inferplane.server.rpc.call import current_call
from inferplane.server.rpc.mutations import Mutations
from inferplane.server.rpc.validation import parse
from inferplane.server.storage.database import Database
from inferplane.server.storage.pages import PageTokens

__all__ = ["AuthService", "IdentityService"]


class AuthService(auth_service_pb2_grpc.AuthServiceServicer):
    """Sessions and tokens."""

    def __init__(self, login: LoginFlow, policy: Any) -> None:
        self._login = login
        self._policy = policy

    async def Login(self, request: auth_pb.LoginRequest, context: Any) -> auth_pb.LoginResponse:
        given = parse(LoginInput, request)
        attempt = Attempt(given.username, given.password, given.device_token, current_call().peer)
        signed_in = await self._login.login(attempt, current_call().actor)
        tokens = token_pair(signed_in.session, signed_in.access_token)
        return auth_pb.LoginResponse(tokens=tokens, device_token=signed_in.device_token)

    async def RefreshToken(self, request: auth_pb.RefreshTokenRequest, context: Any) -> auth_pb.RefreshTokenResponse:
        session, token = await self._login.refresh(request.refresh_token, current_call().actor)
        return auth_pb.RefreshTokenResponse(tokens=token_pair(session, token))

    async def Logout(self, request: auth_pb.LogoutRequest, context: Any) -> auth_pb.LogoutResponse:
        call = current_call()
        await self._login.logout(call.principal.session, call.actor)
        return auth_pb.LogoutResponse()

    async def WhoAmI(self, request: auth_pb.WhoAmIRequest, context: Any) -> auth_pb.WhoAmIResponse:
        principal = current_call().principal
        snapshot: PolicySnapshot = self._policy()
        roles = [
            session_pb2.Identity.HeldRole(role=grant.role, scope=grant.scope)
            for grant in snapshot.grants_of(principal.subject)
        ]
        identity = session_pb2.Identity(subject=principal.subject, session=principal.session, roles=roles)
        return auth_pb.WhoAmIResponse(identity=identity)

    async def GetJwks(self, request: auth_pb.GetJwksRequest, context: Any) -> auth_pb.GetJwksResponse:
        return auth_pb.GetJwksResponse(jwks_json=await self._login.jwks())


class IdentityService(identity_service_pb2_grpc.IdentityServiceServicer):
    """Users and grants."""

    def __init__(self, identities: Identities, mutations: Mutations, database: Database, pages: PageTokens) -> None:
        self._identities = identities
        self._mutations = mutations
        self._database = database
        self._pages = pages

    async def CreateUser(self, request: identity_pb.CreateUserRequest, context: Any) -> user_pb2.User:
        new = NewUser(request.user_id, request.password)
        password_hash = await self._identities.hash_password(new)

        async def create(unit: Any) -> user_pb2.User:
            store = AuthRepository(unit)
            return user_message(await self._identities.create_user(store, new, password_hash))

        return await self._mutations.run(request, user_pb2.User, create)

    async def ListUsers(self, request: identity_pb.ListUsersRequest, context: Any) -> identity_pb.ListUsersResponse:
        scope = ("ListUsers",)
        page = self._pages.page(scope, request.page_size, request.page_token)
        async with self._database.transaction() as connection:
            users, after = await AuthReader(connection).users(page)
        return identity_pb.ListUsersResponse(
            users=map(user_message, users), next_page_token=self._pages.next_token(scope, after)
        )

    async def GrantRole(self, request: identity_pb.GrantRoleRequest, context: Any) -> grant_pb2.Grant:
        new = parse(NewGrant, request)
        creator = current_call().principal.subject

        async def grant(unit: Any) -> grant_pb2.Grant:
            store = AuthRepository(unit)
            return grant_message(await self._identities.grant_role(store, new.subject, new.role, new.scope, creator))

        return await self._mutations.run(request, grant_pb2.Grant, grant)

    async def RevokeGrant(
        self, request: identity_pb.RevokeGrantRequest, context: Any
    ) -> identity_pb.RevokeGrantResponse:
        grant_id = UUID(parse(GrantToRevoke, request).name)

        async def revoke(unit: Any) -> identity_pb.RevokeGrantResponse:
            await self._identities.revoke_grant(AuthRepository(unit), grant_id)
            return identity_pb.RevokeGrantResponse()

        return await self._mutations.run(request, identity_pb.RevokeGrantResponse, revoke)

    async def ListGrants(self, request: identity_pb.ListGrantsRequest, context: Any) -> identity_pb.ListGrantsResponse:
        subject = parse(GrantFilter, request).subject
        scope = ("ListGrants", subject)
        page = self._pages.page(scope, request.page_size, request.page_token)
        async with self._database.transaction() as connection:
            grants, after = await AuthReader(connection).grants(subject, page)
        return identity_pb.ListGrantsResponse(
            grants=map(grant_message, grants), next_page_token=self._pages.next_token(scope, after)
        )
