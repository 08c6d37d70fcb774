"""Puts the auth service together."""

from inferplane.auth.v1 import auth_service_pb2_grpc, identity_service_pb2_grpc
from inferplane.server.auth import devices, guesses, identities, login, passwords, service, sessions, tokens
from inferplane.server.bootstrap import DATABASE, Core

__all__ = ["compose"]

REPORT_INTERVAL = 60.0


async def compose(core: Core) -> None:
    """Register AuthService and IdentityService, and make the first signing key."""
    hasher = passwords.Passwords()
    flow = login.LoginFlow(
        core.database,
        core.units_of_work,
        sessions.Sessions(core.settings.session_lifetime, core.settings.access_token_lifetime),
        hasher,
        tokens.SigningKeys(core.master.derive("signing-keys")),
        devices.Devices(core.master.derive("device-tokens")),
    )
    core.server.arrivals.held_elsewhere = lambda: hasher.held
    await flow.ensure_signing_key()
    core.jwks.fetch_from(flow.jwks)
    # As often as windows of guesses end: whoever knocks leaves one.
    core.tasks.every(guesses.WINDOW.total_seconds(), "delete_expired", flow.delete_expired)
    core.tasks.every(REPORT_INTERVAL, "report_failed_sign_ins", flow.report_failed_sign_ins)
    auth = service.AuthService(flow, core.policy.current)
    identity = service.IdentityService(identities.Identities(hasher), core.mutations, core.database, core.pages)
    core.server.add_service(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, auth, (DATABASE,))
    core.server.add_service(identity_service_pb2_grpc.add_IdentityServiceServicer_to_server, identity, (DATABASE,))
