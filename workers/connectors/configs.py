"""What the configurations of the built-in connectors have in common: no driver is loaded to check one.

Secrets are never written here: ``secrets`` maps the names that a configuration uses to the names of the tenant's
secrets, and every other field that needs one names it by the former.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from jobq.errors import Forbidden, InvalidInput
from jobq.specs import Spec

if TYPE_CHECKING:
    from jobq.settings import Policy


class ConnectorConfig(Spec):
    """The base: every configuration names the secrets that it uses."""

    secrets: dict[str, str] = Field(default_factory=dict)
    """Name that this configuration uses → name of the tenant's secret."""

    def _needs(self, names: Iterable[str | None]) -> None:
        for name in names:
            if name is not None and name not in self.secrets:
                raise ValueError(f"it uses the secret {name!r}, which `secrets` does not have")


def check_area(url: str, policy: Policy, pointer: str = "") -> None:
    """Refuse what lies outside of the operator's areas. Raises Forbidden or InvalidInput."""
    if not url.startswith("/") and "://" not in url:
        raise InvalidInput(f"{url!r} is neither an absolute path nor a URL.", code="invalid_area", pointer=pointer)
    if not policy.allows_area(url):
        raise Forbidden(
            f"{url!r} lies in no area that the operator allows.", code="area_not_allowed",
            hint="The operator allows folders and URL prefixes with JOBQ_POLICY__AREAS.", pointer=pointer,
        )  # fmt: skip
