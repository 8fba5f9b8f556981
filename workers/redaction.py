"""Asterisks in the place of secrets, in whatever is stored or shown: log lines, messages, results.

A secret comes back in many dresses: in a URL, in JSON, in basic authentication, a key line by line. Those are known
here. What a program makes of a secret by a rule of its own (reversed, hashed, every second letter) is not.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus

from jobq.models import Outcome

MIN_HIDDEN = 4
"""A shorter secret would turn every message into asterisks."""
MAX_SHOWN = 300
_MIN_PART = 8
"""Of a secret with several lines, shorter ones stay: a closing brace is no secret."""
_STARS = "***"


class Redaction:
    """Hides secrets, in every form that they are usually written in."""

    def __init__(self, secrets: Iterable[str]) -> None:
        values = [value for value in secrets if len(value) >= MIN_HIDDEN]
        forms = {form for value in values for form in _forms(value)}
        self._forms = sorted(forms, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text with asterisks, and otherwise as it is."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, _STARS)
        return text

    def hide_cut(self, text: str) -> str:
        """The same for a text that goes on behind its end: the beginning of a secret there is hidden too."""
        text = self.hide(text)
        begun = max((_overlap(text, form) for form in self._forms), default=0)
        return text[:-begun] + _STARS if begun else text

    def __call__(self, text: str) -> str:
        """Text from the other side, made fit for a message: without secrets, short, on one line."""
        text = self.hide_cut(text)
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"

    def outcome(self, outcome: Outcome) -> Outcome:
        """The outcome, fit for storing: an executor may have quoted somebody who repeats what he was told."""
        return replace(
            outcome, message=self.hide_cut(outcome.message), error_class=self.hide(outcome.error_class),
            result=self._json(outcome.result),
        )  # fmt: skip

    def _json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self._json(item) for item in value]
        if isinstance(value, dict):
            return {self._json(key): self._json(item) for key, item in value.items()}
        return value

    def __repr__(self) -> str:
        return "Redaction(…)"


class Veil:
    """Takes secrets out of a text that is kept, and puts them back where it is used: a URL of a next page, say.

    A secret that was set anew meanwhile is put back as it is now.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._marks = {
            f"{{secret:{name}:{number}}}": form
            for name, value in secrets.items()
            if len(value) >= MIN_HIDDEN
            for number, form in enumerate(_in_url(value))
        }

    def cover(self, text: str) -> str:
        """The text with marks in the place of secrets."""
        for mark, form in sorted(self._marks.items(), key=lambda pair: len(pair[1]), reverse=True):
            text = text.replace(form, mark)
        return text

    def lift(self, text: str) -> str:
        """The text as it was."""
        for mark, form in self._marks.items():
            text = text.replace(mark, form)
        return text


def _in_url(value: str) -> tuple[str, ...]:
    raw = value.encode("utf-8", "surrogatepass")
    quoted = quote(raw, safe="")
    return (value, quoted, quote(raw), quote_plus(raw), _lower_hex(quoted))


def _overlap(text: str, form: str) -> int:
    """How many characters at the end of the text are a beginning of the form; 0 for fewer than ``MIN_HIDDEN``."""
    for length in range(min(len(form) - 1, len(text)), MIN_HIDDEN - 1, -1):
        if text.endswith(form[:length]):
            return length
    return 0


def _forms(value: str) -> Iterator[str]:
    """How a secret may be written: as it is, line by line, escaped, encoded."""
    for plain in {value, value.strip(), *_lines(value)}:
        if len(plain) >= MIN_HIDDEN:
            yield from _written(plain)
    raw = value.encode("utf-8", "surrogatepass")
    yield from (raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode())
    for offset in range(3):
        yield from _inside_base64(raw, offset)


def _lines(value: str) -> list[str]:
    lines = [line.strip() for line in value.splitlines()]
    return [line for line in lines if len(line) >= _MIN_PART] if len(lines) > 1 else []


def _written(plain: str) -> Iterator[str]:
    """In text, in URLs, in JSON, in a Python representation, in HTML."""
    raw = plain.encode("utf-8", "surrogatepass")
    yield plain
    for quoted in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        yield from (quoted, _lower_hex(quoted))
    for ascii_only in (True, False):
        in_json = json.dumps(plain, ensure_ascii=ascii_only)[1:-1]
        yield from (in_json, in_json.replace("/", "\\/"))
    yield plain.encode("unicode_escape").decode()
    yield from (html.escape(plain), html.escape(plain, quote=False))


def _lower_hex(quoted: str) -> str:
    head, *rest = quoted.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in rest)])


def _inside_base64(raw: bytes, offset: int) -> Iterator[str]:
    """What stays the same of base64 when other bytes stand around: ``user:password`` is one text in basic auth."""
    encoded = base64.b64encode(bytes(offset) + raw)
    whole = (len(raw) + offset) // 3 * 4
    inner = encoded[-(-offset * 8 // 6) : whole].decode()
    if len(inner) >= _MIN_PART:
        yield from (inner, inner.replace("+", "-").replace("/", "_"))
