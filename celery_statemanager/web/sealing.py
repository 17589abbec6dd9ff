"""Encrypt texts that clients return later, so that clients can neither read nor change them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

PROCESS_SECRET = os.urandom(32).hex()
"""The secret of this process and its forks, if none is configured."""

_NONCE = 16
_MAC = 16


def derived_key(secret: str, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose."""
    return hmac.digest(secret.encode(), f"celery-statemanager web: {purpose}".encode(), "sha256")


class Sealer:
    """Encrypts and authenticates short texts.

    A sealed text consists of an HMAC-SHA256 that is truncated to 16 bytes, a random nonce, and the text, combined by
    XOR with the output of SHAKE-256 for a key and the nonce. Its length reveals the length of the text.

    Args:
        purpose: texts that were sealed for another purpose are rejected.
    """

    def __init__(self, secret: str, purpose: str) -> None:
        self._cipher_key = derived_key(secret, f"{purpose}, cipher")
        self._mac_key = derived_key(secret, f"{purpose}, mac")

    def seal(self, text: str) -> str:
        """Return the sealed text: letters, digits, ``-`` and ``_`` of ASCII."""
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._crypt(nonce, text.encode())
        return base64.urlsafe_b64encode(self._mac(sealed) + sealed).decode().rstrip("=")

    def unseal(self, sealed: str) -> str:
        """Return the text. Raises: ValueError – it was not sealed with this secret, or was changed."""
        try:
            raw = base64.b64decode(sealed.encode("ascii") + b"=" * (-len(sealed) % 4), b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise ValueError("not a sealed text") from None
        mac, rest = raw[:_MAC], raw[_MAC:]
        if len(rest) < _NONCE or not hmac.compare_digest(mac, self._mac(rest)):
            raise ValueError("not a sealed text, or sealed with another secret")
        return self._crypt(rest[:_NONCE], rest[_NONCE:]).decode()

    def _mac(self, sealed: bytes) -> bytes:
        return hmac.digest(self._mac_key, sealed, "sha256")[:_MAC]

    def _crypt(self, nonce: bytes, data: bytes) -> bytes:
        stream = hashlib.shake_256(self._cipher_key + nonce).digest(len(data))
        return bytes(left ^ right for left, right in zip(data, stream))
