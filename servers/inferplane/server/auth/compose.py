"""Puts the auth service together."""

from inferplane.auth.v1 import auth_service_pb2_grpc, identity_service_pb2_grpc
from inferplane.server.auth import identities, login, passwords, service, sessions, tokens
from inferplane.server.bootstrap import DATABASE, HOUSEKEEPING_INTERVAL, Core

__all__ = ["compose"]


async def compose(core: Core) -> None:
    """Register AuthService and IdentityService, and make the first signing key."""
    hasher = passwords.Passwords()
    flow = login.LoginFlow(
        core.database,
        core.units_of_work,
        sessions.Sessions(core.settings.session_lifetime),
        hasher,
        tokens.SigningKeys(core.master.derive("signing-keys")),
        core.settings.access_token_lifetime,
    )
    await flow.ensure_signing_key()
    core.jwks.fetch_from(flow.jwks)
    core.tasks.every(HOUSEKEEPING_INTERVAL, "forget_expired", flow.forget_expired)
    auth = service.AuthService(flow, core.policy.current)
    identity = service.IdentityService(identities.Identities(hasher), core.mutations, core.database, core.pages)
    core.server.add_service(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, auth, (DATABASE,))
    core.server.add_service(identity_service_pb2_grpc.add_IdentityServiceServicer_to_server, identity, (DATABASE,))
