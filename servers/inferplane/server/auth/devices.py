"""Device tokens: what a device is given when somebody signs in on it, so that strangers' guesses do not lock it out.

See OWASP, "Slow Down Online Guessing Attacks with Device Cookies".
"""

import base64
import binascii
import hmac
import secrets

__all__ = ["UNKNOWN", "Devices"]

PREFIX = "ipd_"
UNKNOWN = ""
"""The device of all who cannot show that somebody has signed in on theirs."""
_NONCE = 16


class Devices:
    """Makes and reads device tokens. A token is one user's: for another it proves nothing. `key` is 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, username: str, device: str = UNKNOWN) -> str:
        """The token of a device on which `username` has signed in; of a new one if it was not known."""
        nonce = secrets.token_bytes(_NONCE) if device == UNKNOWN else bytes.fromhex(device)
        return PREFIX + base64.urlsafe_b64encode(nonce + self._mac(username, nonce)).decode()

    def device_of(self, token: str, username: str) -> str:
        """The device that the token proves for `username`; UNKNOWN where it proves none."""
        try:
            raw = base64.b64decode(token.removeprefix(PREFIX), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return UNKNOWN
        nonce, mac = raw[:_NONCE], raw[_NONCE:]
        return nonce.hex() if hmac.compare_digest(mac, self._mac(username, nonce)) else UNKNOWN

    def _mac(self, username: str, nonce: bytes) -> bytes:
        return hmac.digest(self._key, username.encode() + b"\0" + nonce, "sha256")
