"""Encryption of secrets at rest: AES-128-CBC with HMAC (Fernet), under a key derived from JOBQ_SECRET_KEY.

Values are bound to their tenant and name: moving a row to another name or tenant makes it unreadable.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from jobq.errors import Misconfigured
from jobq.settings import Settings

_MIN_KEY = 16


class Vault:
    """Seals and opens the secrets of one installation. Raises Misconfigured without a usable JOBQ_SECRET_KEY."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.secret_key.get_secret_value().encode()
        if len(self._key) < _MIN_KEY:
            raise Misconfigured(
                "Secrets need JOBQ_SECRET_KEY: at least 16 characters, the same for applications and workers.",
                code="secret_key_missing",
                hint="Make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )

    def _fernet(self, tenant: str, name: str) -> object:
        from cryptography.fernet import Fernet

        context = b"jobq-secret-v1\0" + tenant.encode() + b"\0" + name.encode()
        return Fernet(base64.urlsafe_b64encode(hmac.digest(self._key, context, hashlib.sha256)))

    def seal(self, tenant: str, name: str, value: str) -> str:
        """The value as it is stored."""
        sealed: bytes = self._fernet(tenant, name).encrypt(value.encode())  # type: ignore[attr-defined]
        return sealed.decode()

    def open(self, tenant: str, name: str, sealed: str) -> str:
        """The value. Raises Misconfigured if it was sealed under another key."""
        from cryptography.fernet import InvalidToken

        try:
            value: bytes = self._fernet(tenant, name).decrypt(sealed.encode())  # type: ignore[attr-defined]
        except InvalidToken as error:
            raise Misconfigured(
                f"The secret {name!r} was stored under another JOBQ_SECRET_KEY.",
                code="secret_key_changed",
                hint=f"Set it again: jobq secret set {name}",
            ) from error
        return value.decode()
