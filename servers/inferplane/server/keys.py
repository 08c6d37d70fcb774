"""Keys on disk and the keys derived from them."""

import secrets
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from inferplane.server.files import write_private

__all__ = ["MasterKey"]


class MasterKey:
    """One secret of 32 bytes from which every purpose derives its own key (HKDF, RFC 5869)."""

    SIZE = 32

    def __init__(self, secret: bytes) -> None:
        if len(secret) != self.SIZE:
            raise ValueError(f"the master key must be {self.SIZE} bytes, not {len(secret)}")
        self._secret = secret

    @classmethod
    def load(cls, path: Path) -> "MasterKey":
        """Read the key; FileNotFoundError if there is none."""
        return cls(path.read_bytes())

    @classmethod
    def load_or_create(cls, path: Path) -> "MasterKey":
        """Read the key, or make a random one."""
        if not path.exists():
            write_private(path, secrets.token_bytes(cls.SIZE))
        return cls.load(path)

    def derive(self, purpose: str) -> bytes:
        """The 32-byte key for `purpose`."""
        return HKDF(hashes.SHA256(), 32, salt=None, info=f"inferplane/{purpose}".encode()).derive(self._secret)
