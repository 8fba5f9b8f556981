"""Input from outside, turned into values or into one readable error.

``parse_json`` reads text, ``parse`` makes a model of what was read, ``check_json`` looks at JSON that is stored as it
is. All of them raise only errors of ``jobq.errors``; messages name what is wrong and never repeat the input itself,
which may hold a secret.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import copy
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from jobq.errors import InvalidInput, JobQError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
"""Arrays and objects within each other: ``[]`` has depth 1."""

Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], data: object, pointer: str = "") -> Model:
    """``data`` as an instance of ``model``, or InvalidInput that points to the first thing that is wrong.

    ``pointer`` is the place of ``data`` in the whole input. What validators raise of ``jobq.errors`` passes through
    with its own code and pointer: pydantic wraps ValueError and AssertionError only.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    path = _path(data, first["loc"], keep_last=first["type"] == "missing")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise InvalidInput(
        f"{_sentence(first['type'], first['msg'], path)}{more}.",
        hint=_suggestion(model, first["loc"]) if first["type"] == "extra_forbidden" else None,
        pointer=pointer + "".join(map(_token, path)),
    )


def _sentence(kind: str, message: str, path: list[str]) -> str:
    """Pydantic's message in the words of somebody who wrote the input."""
    name = repr("/".join(path[-2:] if path and path[-1].isdigit() else path[-1:])[:100])
    if kind == "missing":
        return f"{name} is required"
    if kind == "extra_forbidden":
        return f"{name} is no known field"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        message = "should be an object"
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    return f"{name}: {message[:1].lower()}{message[1:]}" if path else f"The input is wrong: {message}"


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str | None:
    """The known field that an unknown one resembles, or all of them (top level only)."""
    if len(location) != 1:
        return None
    known = sorted(model.model_fields)
    if close := get_close_matches(str(location[0]), known, n=1):
        return f"Did you mean {close[0]!r}?"
    return f"Known fields: {', '.join(known)}."


def _path(data: object, location: tuple[int | str, ...], *, keep_last: bool) -> list[str]:
    """The way to a pydantic location through the data: what that adds for unions and keys is no part of them."""
    path: list[str] = []
    for number, step in enumerate(location):
        inside = range(len(data)) if isinstance(data, list | tuple) else data if isinstance(data, dict) else ()
        if step in inside:
            data = data[step]  # type: ignore[index]
        elif not (keep_last and number == len(location) - 1):
            continue
        path.append(str(step))
    return path


def _token(step: str) -> str:
    """One step of a JSON pointer (RFC 6901), cut where it is absurdly long."""
    shown = step[:200].encode("utf-8", "backslashreplace").decode()
    return "/" + shown.replace("~", "~0").replace("/", "~1")


def located(error: JobQError, what: str, pointer: str) -> JobQError:
    """The same error about one part of a larger input: ``what`` begins its message, ``pointer`` its pointer."""
    outer = copy(error)
    outer.message, outer.pointer = f"{what}: {error.message}", pointer + error.pointer
    return outer


def parse_json(text: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text (RFC 8259, UTF-8), stricter than ``json.loads``.

    InvalidInput ``payload_too_large`` above ``max_bytes``; ``invalid_json`` for anything that is no JSON, and for
    what readers disagree about: NaN and Infinity, numbers beyond double precision's range, duplicate keys, lone
    surrogates, nesting deeper than ``MAX_DEPTH``. NUL characters are left to ``check_json`` and to the models,
    which know a better code for them.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    check_size(raw, max_bytes)
    try:
        decoded = raw.decode()
        value = json.loads(decoded, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite_float)
    except RecursionError:
        raise _too_deep("") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and what the hooks raise
        raise InvalidInput(f"The input is no valid JSON: {_json_problem(error)}.", code="invalid_json") from None
    # Only escapes can bring in what UTF-8 refuses, and few brackets cannot be deep: most texts need no walk.
    if "\\u" in decoded or decoded.count("[") + decoded.count("{") > MAX_DEPTH:
        for problem in _problems(value, ""):
            if problem.code == "invalid_json":
                raise problem
    return value


def check_size(raw: bytes, max_bytes: int = MAX_BYTES) -> None:
    """Raises InvalidInput ``payload_too_large``."""
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)


def tenant_name(name: str, pointer: str = "/tenant") -> str:
    """The name, if a tenant may have it. Raises InvalidInput."""
    if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise InvalidInput(
            f"{name[:100]!r} is no name of a tenant.", hint="1 to 100 printable characters, no space at the ends.",
            pointer=pointer,
        )  # fmt: skip
    return name


def check_media_type(content_type: str | None) -> None:
    """Raises InvalidInput ``unsupported_media_type`` for a body that is no JSON by its Content-Type; none is fine."""
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise InvalidInput(
            "The body is no JSON by its Content-Type.", code="unsupported_media_type",
            hint="Content-Type: application/json",
        )  # fmt: skip


def _json_problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} comes twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite_float(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError("a number is too large for a 64-bit float")
    return number


def check_json(value: object, *, max_bytes: int = MAX_BYTES, pointer: str = "") -> str:
    """Make sure that a Python value is JSON which can be stored; returns it as compact JSON text.

    InvalidInput, pointing to the place: ``validation_error`` for types that JSON does not know, keys that are no
    text, NUL characters (PostgreSQL's jsonb has none); ``invalid_json`` for NaN and infinity, lone surrogates and
    nesting deeper than ``MAX_DEPTH``; ``payload_too_large`` above ``max_bytes`` of UTF-8.
    """
    for problem in _problems(value, pointer):
        raise problem
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # an integer of more digits than Python prints
        raise InvalidInput("A number has too many digits.", pointer=pointer) from None
    if (size := len(text.encode())) > max_bytes:
        raise _too_large(size, max_bytes, pointer)
    return text


def _problems(value: object, pointer: str, depth: int = 0) -> Iterator[InvalidInput]:
    """Everything in a value that cannot be stored, in order."""
    if isinstance(value, str):
        yield from _text_problems(value, pointer)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield InvalidInput("NaN and infinity are no JSON numbers.", code="invalid_json", pointer=pointer)
    elif value is None or isinstance(value, int):
        return
    elif not isinstance(value, dict | list | tuple):
        yield InvalidInput(
            f"A {type(value).__name__} is no JSON value.",
            hint="Use None, bool, int, float, str, list and dict.",
            pointer=pointer,
        )
    elif depth >= MAX_DEPTH:
        yield _too_deep(pointer)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield InvalidInput(f"A key is a {type(key).__name__}; JSON has text only.", pointer=pointer)
                continue
            yield from _text_problems(key, pointer)
            yield from _problems(item, pointer + _token(key), depth + 1)
    else:
        for number, item in enumerate(value):
            yield from _problems(item, f"{pointer}/{number}", depth + 1)


def _text_problems(text: str, pointer: str) -> Iterator[InvalidInput]:
    if text.isascii() and "\x00" not in text:
        return
    if "\x00" in text:
        yield InvalidInput("Text must not contain a NUL character.", pointer=pointer)
    if any("\ud800" <= char <= "\udfff" for char in text):
        yield InvalidInput("Text contains half of a surrogate pair.", code="invalid_json", pointer=pointer)


def _too_deep(pointer: str) -> InvalidInput:
    return InvalidInput(
        f"The input is nested deeper than {MAX_DEPTH} levels.",
        code="invalid_json",
        pointer=pointer,
    )


def _too_large(size: int, maximum: int, pointer: str = "") -> InvalidInput:
    return InvalidInput(
        f"The input takes {size} bytes; at most {maximum} are accepted.",
        code="payload_too_large",
        hint="Keep large data in a file or a store that the job reads, and pass its address.",
        pointer=pointer,
    )
