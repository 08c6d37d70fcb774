"""Workload identity: a key per service, and 60-second tokens that carry the original caller along."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from inferplane.server.files import write_private
from inferplane.server.ids import uuid7
from inferplane.server.names import WORKLOAD
from inferplane.server.settings import ServiceName

__all__ = ["WORKLOAD_TOKEN_TYPE", "WorkloadSigner", "ensure_workload_keys", "load_workload_keys"]

WORKLOAD_TOKEN_TYPE = "workload+jwt"  # noqa: S105 - a media type
LIFETIME = 60
REUSE = 30
PUBLIC_FILE = "workloads.jwks"


def ensure_workload_keys(directory: Path) -> None:
    """Make a key for each service that has none, and the set of all public keys."""
    for service in ServiceName:
        path = directory / f"{service}.jwk"
        if not path.exists():
            write_private(path, json.dumps(ECKey.generate_key("P-256").as_dict(private=True)).encode())
    public = KeySet([_load(directory, service) for service in ServiceName]).as_dict(private=False)
    content = json.dumps(public, sort_keys=True).encode()
    path = directory / PUBLIC_FILE
    if not path.exists() or path.read_bytes() != content:
        write_private(path, content)


def _load(directory: Path, service: ServiceName) -> ECKey:
    key = ECKey.import_key(json.loads((directory / f"{service}.jwk").read_bytes()))
    return ECKey.import_key({**key.as_dict(private=True), "kid": WORKLOAD.format(service)})


def load_workload_keys(directory: Path) -> KeySet:
    """The public keys; each key's id is `workloads/<service>`."""
    return KeySet.import_key_set(json.loads((directory / PUBLIC_FILE).read_bytes()))


class WorkloadSigner:
    """Signs this service's calls to others."""

    def __init__(self, directory: Path, service: ServiceName) -> None:
        self._key = _load(directory, service)
        self._subject = WORKLOAD.format(service)
        self._tokens: dict[tuple[str, str], tuple[float, str]] = {}

    def metadata(self, audience: ServiceName, on_behalf_of: str = "") -> list[tuple[str, str]]:
        """Call metadata that proves who we are to `audience`, and for whom we call."""
        return [("authorization", f"Bearer {self._token(audience, on_behalf_of)}")]

    def _token(self, audience: str, on_behalf_of: str) -> str:
        now = time.time()
        made, token = self._tokens.get((audience, on_behalf_of), (0.0, ""))
        # A clock that was set back makes a token of the future, which nobody takes.
        if not 0 <= now - made <= REUSE:
            token = self._sign(audience, on_behalf_of, int(now))
            self._tokens = dict(self._live(now))
            self._tokens[audience, on_behalf_of] = (now, token)
        return token

    def _live(self, now: float) -> Iterable[tuple[tuple[str, str], tuple[float, str]]]:
        return (item for item in self._tokens.items() if 0 <= now - item[1][0] <= REUSE)

    def _sign(self, audience: str, on_behalf_of: str, now: int) -> str:
        claims: dict[str, str | int] = {
            "iss": self._subject,
            "sub": self._subject,
            "aud": WORKLOAD.format(audience),
            "iat": now,
            "exp": now + LIFETIME,
            "jti": str(uuid7()),
        }
        if on_behalf_of:
            claims["on_behalf_of"] = on_behalf_of
        header = {"alg": "ES256", "typ": WORKLOAD_TOKEN_TYPE, "kid": self._subject}
        return jwt.encode(header, claims, self._key, algorithms=["ES256"])
