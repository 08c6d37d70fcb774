"""Verifies tokens offline: access tokens by Auth's published keys, workload tokens by the installation's."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate
from inferplane.server.identity.principal import Principal
from inferplane.server.identity.workloads import LIFETIME, WORKLOAD_TOKEN_TYPE
from inferplane.server.names import WORKLOAD
from inferplane.server.settings import ServiceName
from inferplane.server.tasks import start_task

__all__ = ["ACCESS_TOKEN_AUDIENCE", "ACCESS_TOKEN_TYPE", "JwksCache", "Verifier"]

log = structlog.get_logger()

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
ACCESS_TOKEN_AUDIENCE = "inferplane"  # noqa: S105 - an audience
ISSUER = "inferplane"
LEEWAY = 5
REFETCH_INTERVAL = 2.0
CACHE_SIZE = 10_000
THREADS = 2
"""That verify, and do nothing else: nobody's other work shall wait behind a flood of forged tokens."""
WAITING = 20_000
WAITING_EACH = 4000
"""Tokens that wait to be verified, of all and of one address."""
LATEST = 253_402_300_799
"""The end of the year 9999, the last that a Timestamp holds."""

_threads = ThreadPoolExecutor(THREADS, "verify")


class JwksCache:
    """Auth's public keys, fetched when first needed and when an unknown key id turns up, at most every 2 s.

    A fetch belongs to none of those who wait for it: one who leaves does not end it.
    """

    def __init__(self, fetch: Callable[[], Awaitable[str]]) -> None:
        self._fetch = fetch
        self._keys: dict[str, Any] = {}
        self._tried_at = float("-inf")
        self._failed = True
        self._fetching: asyncio.Task[None] | None = None

    def fetch_from(self, fetch: Callable[[], Awaitable[str]]) -> None:
        """Get them from elsewhere from now on: Auth has its own."""
        self._fetch = fetch

    async def key(self, kid: str) -> Any:
        """The key of that id, or None; DEPENDENCY_UNAVAILABLE where it is not known and the last fetch failed."""
        if kid not in self._keys:
            if self._fetching is None and time.monotonic() - self._tried_at > REFETCH_INTERVAL:
                self._fetching = start_task(self._refresh())
            if self._fetching is not None:
                await asyncio.shield(self._fetching)
            if kid not in self._keys and self._failed:
                raise InferplaneError(
                    ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, retry_after=REFETCH_INTERVAL, dependency="auth"
                )
        return self._keys.get(kid)

    async def _refresh(self) -> None:
        try:
            keys = KeySet.import_key_set(json.loads(await self._fetch()))
        except Exception as error:  # noqa: BLE001 - whatever it is, there are no keys
            log.warning("jwks_fetch_failed", error=type(error).__name__)
            self._failed = True
        else:
            self._keys = {str(key.kid): key for key in keys.keys}
            self._failed = False
        finally:
            # Counted from its end: a fetch may take longer than the pause.
            self._tried_at = time.monotonic()
            self._fetching = None


class Verifier:
    """Verifies access tokens and workload tokens. Those that were good are remembered until they expire."""

    def __init__(self, jwks: JwksCache, workloads: KeySet, service: ServiceName) -> None:
        self._jwks = jwks
        self._workloads = {str(key.kid): key for key in workloads.keys}
        self._audience = WORKLOAD.format(service)
        self._known: dict[str, tuple[Principal, float]] = {}
        self._turns = FairGate(
            "too many tokens are being verified",
            capacity=THREADS,
            each=THREADS,
            waiting=WAITING,
            waiting_each=WAITING_EACH,
            displace=True,
        )

    def remembered(self, token: str) -> Principal | None:
        """The principal of a token that was verified before and is still good."""
        found = self._known.get(token)
        return found[0] if found is not None and time.time() < found[1] else None

    async def verify(self, token: str, address: Callable[[], str] = lambda: "") -> Principal:
        """The principal that `token` proves; raises CREDENTIALS_INVALID or TOKEN_EXPIRED, and OVERLOADED where too many
        wait to be verified. Those who send from different `address`es take turns."""
        if (principal := self.remembered(token)) is not None:
            return principal
        header = _header(token)
        kid = str(header.get("kid", ""))
        if header.get("typ") == WORKLOAD_TOKEN_TYPE:
            claims = await self._claims(token, self._workloads.get(kid), address)
            principal, expires = self._workload(claims, kid)
        elif header.get("typ") == ACCESS_TOKEN_TYPE:
            claims = await self._claims(token, await self._jwks.key(kid), address)
            principal, expires = _access(claims)
        else:
            raise _invalid("wrong token type")
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        self._known[token] = (principal, expires)
        return principal

    async def _claims(self, token: str, key: Any, address: Callable[[], str]) -> dict[str, Any]:
        """The claims of a token whose signature verifies."""
        if key is None:
            raise _invalid("unknown key")
        sender = address()
        await self._turns.enter(sender, 1)
        try:
            if self.remembered(token) is None:
                # Off the loop: a flood of forged tokens must not stall everybody else.
                await asyncio.get_running_loop().run_in_executor(_threads, jwt.decode, token, key, ["ES256"])
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise _invalid("the signature does not verify") from error
        finally:
            self._turns.leave(sender, 1)
        return _object(token, 1)

    def _workload(self, claims: dict[str, Any], kid: str) -> tuple[Principal, float]:
        expires = _check_times(claims)
        if claims.get("aud") != self._audience:
            raise _invalid("wrong audience")
        if claims.get("sub") != kid or claims.get("iss") != kid or expires - claims["iat"] > LIFETIME:
            raise _invalid("wrong claims")
        return Principal(kid, on_behalf_of=str(claims.get("on_behalf_of", "")), expires_at=expires), expires


def _invalid(detail: str) -> InferplaneError:
    return InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, detail=detail)


def _header(token: str) -> dict[str, Any]:
    header = _object(token, 0)
    if header.get("alg") != "ES256":
        raise _invalid("not a token of ours")
    return header


def _object(token: str, part: int) -> dict[str, Any]:
    """The JSON object in a part of the token, read as strictly as can be.

    Of a name that comes twice, another reader may believe the other value (RFC 7519, section 4); NaN is not JSON.
    """
    try:
        encoded = token.split(".", 2)[part]
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        value = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, IndexError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _invalid("not a token of ours")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name comes twice")
    return members


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _check_times(claims: dict[str, Any]) -> float:
    """When the token expires, if it is good now; NumericDates of RFC 7519, in whole seconds as ours are."""
    issued = _time(claims, "iat")
    expires = _time(claims, "exp")
    begins = _time(claims, "nbf") if "nbf" in claims else issued
    soon = time.time() + LEEWAY
    if issued > soon or begins > soon:
        raise _invalid("wrong times")
    if expires <= time.time():
        raise InferplaneError(ErrorReason.ERROR_REASON_TOKEN_EXPIRED)
    return float(expires)


def _time(claims: dict[str, Any], name: str) -> int:
    # Neither floats, which may be infinite, nor booleans, which count as integers.
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= LATEST:
        raise _invalid("wrong times")
    return value


def _access(claims: dict[str, Any]) -> tuple[Principal, float]:
    expires = _check_times(claims)
    if claims.get("aud") != ACCESS_TOKEN_AUDIENCE:
        raise _invalid("wrong audience")
    subject, session = claims.get("sub"), claims.get("sid")
    if claims.get("iss") != ISSUER or not isinstance(subject, str) or not isinstance(session, str):
        raise _invalid("wrong claims")
    if not subject.startswith("users/"):
        raise _invalid("wrong subject")
    return Principal(subject, session, expires_at=expires), expires
