"""Keys on disk and the keys derived from them."""

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["MasterKey", "write_private"]


def write_private(path: Path, content: bytes) -> None:
    """Write `content` to a new file of mode 0600 in a folder of mode 0700; atomic, and never over another."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


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
