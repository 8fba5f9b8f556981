"""As whom an image is pulled: the tenant's secret that ``registry_secret`` names, as the engine wants it.

The secret holds JSON: ``{"username": …, "password": …}``, or ``{"identitytoken": …}`` where the registry gives such.
The engine passes it on to the image's own registry and keeps nothing of it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from jobq.errors import InvalidInput
from jobq.validation import parse_json
from workers.redaction import Redaction

DOCKER_HUB = "https://index.docker.io/v1/"
_FORMS = ({"username", "password"}, {"identitytoken"})

Login = Mapping[str, str]


def read_login(name: str, secret: str) -> Login:
    """What the secret of that name holds. Raises InvalidInput, which shows nothing of it."""
    try:
        login = parse_json(secret)
    except InvalidInput:
        login = None
    if not isinstance(login, dict) or set(login) not in _FORMS or not all(_is_text(text) for text in login.values()):
        raise InvalidInput(
            f"the secret {name!r} holds no login for a registry", pointer="/spec/registry_secret",
            hint='Store JSON: {"username": "…", "password": "…"}, or {"identitytoken": "…"}.',
        )  # fmt: skip
    return login


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def auth_header(image: str, login: Login) -> str:
    """The value of ``X-Registry-Auth`` for a pull of the image."""
    document = json.dumps({**login, "serveraddress": server_of(image)})
    return base64.urlsafe_b64encode(document.encode()).decode()


def server_of(image: str) -> str:
    """The registry that an image comes from, as logins name it: a name without a host is Docker Hub's."""
    host, slash, _ = image.partition("/")
    named = slash and ("." in host or ":" in host or host == "localhost" or host != host.lower())
    return host if named and host not in {"docker.io", "index.docker.io"} else DOCKER_HUB


def masked(text: str, login: Login | None) -> str:
    """A message of the engine, with asterisks where a careless registry repeats the password or token."""
    return Redaction(value for key, value in (login or {}).items() if key != "username").hide(text)
