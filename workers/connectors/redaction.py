"""Text from the other side, made fit for messages and logs: without secrets, short, on one line."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

MIN_HIDDEN = 4
"""A shorter secret would turn every message into asterisks."""
MAX_SHOWN = 300


class Redaction:
    """Hides the values of secrets, also as they look in URLs, in JSON and in basic authentication."""

    def __init__(self, secrets: Mapping[str, str], *further: str) -> None:
        values = [value for value in (*secrets.values(), *further) if len(value) >= MIN_HIDDEN]
        forms = {form for value in values for form in _forms(value)}
        self._hidden = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text, as it may be shown."""
        for form in self._hidden:
            text = text.replace(form, "***")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"

    def __repr__(self) -> str:
        return "Redaction(…)"


def _forms(value: str) -> set[str]:
    raw = value.encode("utf-8", "surrogatepass")
    written = value.encode("unicode_escape").decode()
    return {value, quote(raw, safe=""), quote_plus(raw), written, base64.b64encode(raw).decode()}
