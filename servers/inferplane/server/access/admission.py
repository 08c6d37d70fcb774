"""Who calls, and whether they may: asked in one way by the pipeline, by the data plane and by lists."""

import time
from collections.abc import Callable, Iterable

from inferplane.common.v1.access_pb2 import Permission
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.credentials import bearer_token
from inferplane.server.access.snapshot import PolicySnapshot
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal
from inferplane.server.identity.verification import Verifier

__all__ = ["Admission", "denied"]

Metadata = Iterable[tuple[str, str | bytes]]


def denied(permission: Permission.ValueType, name: str = "") -> InferplaneError:
    """PERMISSION_DENIED that says what to ask an administrator for; without a name where none was looked at, because
    the caller has the permission nowhere."""
    reason, asked = ErrorReason.ERROR_REASON_PERMISSION_DENIED, Permission.Name(permission).removeprefix("PERMISSION_")
    if not name:
        return InferplaneError(reason, permission=asked)
    return InferplaneError(reason, permission=asked, resource=name)


class Admission:
    """Verifies credentials and asks the policy. `policy` gives the snapshot to decide by, or raises POLICY_STALE."""

    def __init__(self, verifier: Verifier, policy: Callable[[], PolicySnapshot]) -> None:
        self._verifier = verifier
        self.policy = policy

    async def authenticate(self, metadata: Metadata, address: Callable[[], str]) -> Principal:
        """Who calls, by the call's metadata; `address` is where it comes from.

        Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID, TOKEN_EXPIRED, SESSION_ENDED, POLICY_STALE, OVERLOADED, and
        DEPENDENCY_UNAVAILABLE where the keys of the auth service were never seen.
        """
        token = bearer_token(metadata)
        principal = self._verifier.remembered(token) or await self._verifier.verify(token, address)
        self.confirm_session(principal)
        return principal

    def confirm_session(self, principal: Principal) -> None:
        """Raises SESSION_ENDED where the session that the credentials are of has ended; at most a second later."""
        if principal.session and principal.session in self.policy().revoked:
            raise InferplaneError(ErrorReason.ERROR_REASON_SESSION_ENDED)

    def confirm(self, principal: Principal) -> None:
        """Raises TOKEN_EXPIRED or SESSION_ENDED where credentials that were good are so no longer."""
        if time.time() >= principal.expires_at:
            raise InferplaneError(ErrorReason.ERROR_REASON_TOKEN_EXPIRED)
        self.confirm_session(principal)

    def allows(self, principal: Principal, permission: Permission.ValueType, name: str) -> bool:
        """Whether a grant gives the permission on `name` (`*` for the installation)."""
        return self.policy().allows(principal.subject, permission, name)

    def authorize(self, principal: Principal, permission: Permission.ValueType, name: str) -> None:
        """Raises PERMISSION_DENIED unless a grant gives the permission on `name` (`*` for the installation)."""
        if not self.allows(principal, permission, name):
            raise denied(permission, name)

    def authorize_somewhere(self, principal: Principal, permission: Permission.ValueType) -> None:
        """Raises PERMISSION_DENIED unless a grant gives the permission on whatever names."""
        if not self.policy().allows_somewhere(principal.subject, permission):
            raise denied(permission)
