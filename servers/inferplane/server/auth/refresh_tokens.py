"""Refresh tokens: opaque, stored as hashes, each with its successor sealed under a key that only the token gives."""

import base64
import hashlib
import secrets

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["new_token", "open_successor", "seal_successor", "token_hash"]

PREFIX = "ipr_"
"""Lets secret scanners find leaked tokens."""


def new_token() -> str:
    """A token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What is stored of a token: SHA-256, which is enough for a secret of that entropy."""
    return hashlib.sha256(token.encode()).digest()


def seal_successor(token: str, successor: str) -> bytes:
    """Encrypt the token that follows, so that who reads the database, master key in hand, cannot use it."""
    return _cipher(token).encrypt(successor.encode())


def open_successor(token: str, sealed: bytes | None) -> str | None:
    """The token that follows; None where there is none."""
    if sealed is None:
        return None
    try:
        return _cipher(token).decrypt(sealed).decode()
    except InvalidToken:
        return None


def _cipher(token: str) -> Fernet:
    key = HKDF(hashes.SHA256(), 32, salt=None, info=b"inferplane/refresh-token-successor").derive(token.encode())
    return Fernet(base64.urlsafe_b64encode(key))
