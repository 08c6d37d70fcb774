"""Access tokens: ES256 JWTs of type `at+jwt` (RFC 9068), and the keys that sign them."""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from inferplane.server.identity.verification import ACCESS_TOKEN_AUDIENCE, ACCESS_TOKEN_TYPE, ISSUER
from inferplane.server.ids import now, uuid7
from inferplane.server.names import SESSION, USER

__all__ = ["AccessToken", "SealedKey", "SigningKeys", "TokenIssuer"]


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A signing key as stored: its private half is encrypted."""

    kid: str
    private_jwk: bytes
    public_jwk: dict[str, Any]
    created_at: datetime


class SigningKeys:
    """Makes signing keys and opens stored ones. `cipher_key` is 32 bytes."""

    def __init__(self, cipher_key: bytes) -> None:
        self._cipher = Fernet(base64.urlsafe_b64encode(cipher_key))

    def make(self) -> SealedKey:
        """A new P-256 key."""
        kid = str(uuid7())
        key = ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"})
        sealed = self._cipher.encrypt(json.dumps(key.as_dict(private=True)).encode())
        return SealedKey(kid, sealed, dict(key.as_dict(private=False)), now())

    def open(self, sealed: SealedKey) -> ECKey:
        """The key itself; ValueError if the master key is not the one that sealed it."""
        try:
            return ECKey.import_key(json.loads(self._cipher.decrypt(sealed.private_jwk)))
        except InvalidToken:
            raise ValueError(
                "the stored signing key was sealed with another master key: restore that key file"
            ) from None


def public_set(keys: Sequence[SealedKey]) -> str:
    """The JSON Web Key Set of `keys`, without private halves."""
    return json.dumps(KeySet([ECKey.import_key(key.public_jwk) for key in keys]).as_dict(private=False))


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed token and when it expires."""

    text: str
    expires_at: datetime


class TokenIssuer:
    """Signs access tokens."""

    def __init__(self, key: ECKey) -> None:
        self._key = key

    async def issue(self, username: str, session_id: UUID, expires: datetime) -> AccessToken:
        """A token for one session of one user, good until `expires`."""
        issued = now()
        claims: dict[str, str | int] = {
            "iss": ISSUER,
            "aud": ACCESS_TOKEN_AUDIENCE,
            "sub": USER.format(username),
            "sid": SESSION.format(session_id),
            "client_id": "inferplane",
            "iat": int(issued.timestamp()),
            "exp": int(expires.timestamp()),
            "jti": str(uuid7()),
        }
        header = {"alg": "ES256", "typ": ACCESS_TOKEN_TYPE, "kid": str(self._key.kid)}
        text = await asyncio.to_thread(jwt.encode, header, claims, self._key, ["ES256"])
        return AccessToken(text, expires)
