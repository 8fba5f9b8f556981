"""The secrets that a job's spec names, read when it starts and at no other time."""

from __future__ import annotations

from collections.abc import Iterable

from jobq.errors import NotFound
from jobq.settings import Settings
from jobq.store.database import Database
from jobq.store.secrets import find
from jobq.vault import Vault


class Keyring:
    """Reads secrets of a tenant. Blocks: call it in a thread."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database

    def read(self, tenant: str, names: Iterable[str]) -> dict[str, str]:
        """The values by name. Raises NotFound (``secret_missing``) or Misconfigured (no key, or another one)."""
        wanted = sorted(set(names))
        vault = Vault(self._settings)
        with self._database.read() as conn:
            sealed = find(conn, tenant, wanted)
        if missing := [name for name in wanted if name not in sealed]:
            raise NotFound(
                f"There is no secret {missing[0]!r}.",
                code="secret_missing",
                hint=f"Store it: jobq secret set {missing[0]}",
            )
        return {name: vault.open(tenant, name, sealed[name]) for name in wanted}
