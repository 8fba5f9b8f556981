"""Which entities are taken, and what is made of them: conditions and property mappings in JMESPath. Pure.

Everything is compiled once, when a spec is accepted and again when a worker begins, and then applied to each record.
What can be wrong with an expression is InvalidInput ``invalid_expression`` with its pointer; what can be wrong with a
record is MappingError: it fails that entity, and nothing else.

A mapping makes an object with exactly its fields, in their order. A field is a JMESPath expression, or an object::

    {"path": "address.zip", "type": "string", "transform": ["strip"], "default": "unknown", "required": true}
    {"value": "EU"}

- What an expression does not find is ``default``, or else null. ``required`` refuses null and empty text.
- ``type`` converts: string, integer, number, boolean, date (``2026-03-01``), datetime (RFC 3339 in UTC; without an
  offset it is taken as UTC), json (as it is, the default). Blank text is nothing, for all but string and json.
- ``transform``: strip, lower, upper, one after the other, for text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from jmespath.exceptions import ArityError, IncompleteExpressionError, JMESPathTypeError, LexerError, ParseError
from jmespath.functions import Functions
from jmespath.parser import Parser
from jmespath.visitor import TreeInterpreter
from pydantic import BaseModel, ConfigDict

from jobq.coercion import CONVERTERS, NOUNS, TRANSFORMS, Transform, Type
from jobq.errors import InvalidInput
from jobq.validation import MAX_DEPTH, check_json, parse

MAX_ENTITY_BYTES = 4 * 1024 * 1024
"""Of one entity's mapped JSON in UTF-8."""
MAX_KEY_LENGTH = 512
MAX_KEY_BYTES = 1024
"""Of an entity's key in UTF-8: an index holds it together with other names."""
MAX_EXPRESSION = 4096
MAX_FIELDS = 1000
_MAX_GROWTH = 256
"""How many times its input an expression may repeat: ``[@, @] | [@, @] | …`` makes gigabytes of one record."""

Record = abc.Mapping[str, Any]


class MappingError(Exception):
    """An entity cannot be judged or mapped. The message names the field and the value, never the whole record."""

    error_class: ClassVar[str] = "MappingError"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = f"{field[:200]!r}: {message}." if field else f"{message[:1].upper()}{message[1:]}."

    def __str__(self) -> str:
        return self.message


# --- expressions -----------------------------------------------------------------------------------------------------


class Expression:
    """A compiled JMESPath expression. Safe to share between threads."""

    __slots__ = ("_look", "text")

    def __init__(self, text: str, pointer: str = "") -> None:
        """Raises InvalidInput ``invalid_expression`` at ``pointer``, with the position in the text."""
        self.text = text
        if len(text) > MAX_EXPRESSION:
            raise _bad_expression(f"it has {len(text)} characters; at most {MAX_EXPRESSION} are accepted", pointer)
        try:
            tree: Any = Parser().parse(text).parsed
            _judge(tree, pointer)
        except RecursionError:
            raise _bad_expression("it is nested too deeply", pointer) from None
        except (ValueError, Warning) as error:  # a Warning: Python was told to raise them
            raise _bad_expression(_parse_problem(error, text), pointer) from None
        self._look = _looker(tree)

    def of(self, record: Any, field: str) -> Any:
        """What it finds in the record, None if nothing. MappingError names ``field``."""
        try:
            return self._look(record)
        except Exception as error:  # noqa: BLE001 - raised as what it means: the expression does not fit the record
            raise MappingError(field, f"{_evaluation_problem(error)}, in {_shown(self.text)}") from None


def _bad_expression(problem: str, pointer: str) -> InvalidInput:
    return InvalidInput(
        f"The expression is no valid JMESPath: {problem}.",
        code="invalid_expression", hint="https://jmespath.org/specification.html has the grammar.", pointer=pointer,
    )  # fmt: skip


def _parse_problem(error: Exception, text: str) -> str:
    if not text:
        return "it is empty"
    if isinstance(error, LexerError):
        return f"{str(error.message)[:100]} at character {error.lexer_position + 1}"
    if isinstance(error, IncompleteExpressionError):
        return f"it ends too early, at character {len(text) + 1}"
    if isinstance(error, ParseError):
        return f"unexpected {str(error.token_value)[:100]!r} at character {error.lex_position + 1}"
    return str(error).partition("\n")[0][:200].rstrip(".")


def _judge(tree: dict[str, Any], pointer: str) -> None:
    """Refuse what parses but cannot work, and what multiplies its input."""
    if tree["type"] == "expref":
        raise _bad_expression("&… stands in the arguments of a function only", pointer)
    for node in _nodes(tree):
        if node["type"] == "function_expression":
            _judge_call(node["value"], len(node["children"]), pointer)
    if (growth := _growth(tree)) > _MAX_GROWTH:
        raise _bad_expression(f"it repeats its input up to {min(growth, 10**6)} times", pointer)


def _judge_call(name: str, given: int, pointer: str) -> None:
    known = Functions.FUNCTION_TABLE.get(name)
    if known is None:
        names = ", ".join(sorted(Functions.FUNCTION_TABLE))
        raise _bad_expression(f"there is no function {name[:100]}(); there are {names}", pointer)
    wanted = known["signature"]
    variadic = bool(wanted) and bool(wanted[-1].get("variadic"))
    if given != len(wanted) and not (variadic and given > len(wanted)):
        least = "at least " if variadic else ""
        raise _bad_expression(f"{name}() takes {least}{len(wanted)} argument(s), not {given}", pointer)


def _children(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [child for child in node.get("children", ()) if isinstance(child, dict)]


def _nodes(node: dict[str, Any]) -> Iterable[dict[str, Any]]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _growth(node: dict[str, Any]) -> int:
    """An upper bound of how many copies of its input an expression's result can hold."""
    parts = [_growth(child) for child in _children(node)]
    if node["type"] in {"multi_select_list", "multi_select_dict"}:
        return sum(parts)
    if node["type"] in {"comparator", "and_expression", "or_expression", "not_expression"}:
        return max(parts)
    return math.prod(parts)


def _looker(tree: Any) -> Callable[[Any], Any]:
    """What applies the tree. Most paths are names with dots between them: those need no interpreter."""
    if tree["type"] == "field":
        name = tree["value"]
        return lambda record: record.get(name)
    if tree["type"] == "subexpression" and all(child["type"] == "field" for child in tree["children"]):
        names = [child["value"] for child in tree["children"]]
        return lambda record: _walk(record, names)
    interpreter = TreeInterpreter()
    return lambda record: interpreter.visit(tree, record)


def _walk(value: Any, names: list[str]) -> Any:
    for name in names:
        if not isinstance(value, abc.Mapping):
            return None
        value = value.get(name)
    return value


def _evaluation_problem(error: Exception) -> str:
    """Without the value: JMESPath's own messages repeat whole records."""
    if isinstance(error, JMESPathTypeError):
        wanted = " or ".join(str(name).replace("array-", "array of ") for name in error.expected_types)
        return f"{error.function_name}() takes {wanted}, not {error.actual_type}"
    if isinstance(error, ArityError):
        return f"{error.function_name}() has the wrong number of arguments"
    if isinstance(error, TypeError):
        return "values of different types cannot be compared"
    return f"cannot be evaluated ({type(error).__name__})"


# --- conditions ------------------------------------------------------------------------------------------------------


class Conditions:
    """Expressions that must all be true of a record, in JMESPath's sense: null, false, '', [] and {} are not."""

    __slots__ = ("_all",)

    def __init__(self, expressions: Sequence[str], pointer: str = "") -> None:
        self._all = [Expression(text, f"{pointer}/{number}") for number, text in enumerate(expressions)]

    def __bool__(self) -> bool:
        return bool(self._all)

    def hold(self, record: Record) -> bool:
        """Does the record pass? MappingError, if a condition cannot be evaluated on it."""
        return all(_is_true(one.of(record, "conditions")) for one in self._all)


def _is_true(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


# --- mappings --------------------------------------------------------------------------------------------------------


class _Rule(BaseModel):
    """A field of a mapping, as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str | None = None
    value: Any = None
    default: Any = None
    type: Type = "json"
    required: bool = False
    transform: list[Transform] = []


class _Field:
    """A field of a mapping, compiled."""

    __slots__ = ("_constant", "_convert", "_default", "_expression", "_required", "_transforms", "_type", "name")

    def __init__(self, name: str, rule: _Rule, expression: Expression | None, pointer: str) -> None:
        self.name = name
        self._type = rule.type
        self._convert = CONVERTERS.get(rule.type)
        self._transforms = [TRANSFORMS[name] for name in rule.transform]
        self._required = rule.required
        self._expression = expression
        try:
            self._constant = self._made(rule.value)
            self._default = self._made(rule.default)
        except MappingError as error:
            raise InvalidInput(error.message, pointer=pointer) from None

    def of(self, record: Record) -> Any:
        """Its value for a record."""
        if self._expression is None:
            return self._constant
        value = self._expression.of(record, self.name)
        if value is not None and (self._convert is not None or self._transforms):
            value = self._made(value)
        if value is None:
            value = self._default
        if self._required and (value is None or value == ""):
            raise MappingError(self.name, f"is required, but {_shown(self._expression.text)} is empty or not there")
        return value

    def _made(self, value: Any) -> Any:
        """The value in its type, and transformed."""
        if value is None:
            return None
        if self._convert is not None:
            try:
                value = self._convert(value)
            except (ArithmeticError, TypeError, ValueError):
                raise MappingError(self.name, f"{_shown(value)} is no {NOUNS.get(self._type, self._type)}") from None
        if self._transforms:
            if not isinstance(value, str):
                raise MappingError(self.name, f"{_shown(value)} is no text, and cannot be transformed")
            for transform in self._transforms:
                value = transform(value)
        return value


class Mapping:
    """Makes the payload of an entity: one value per field. Without any field, the record stays as it is."""

    __slots__ = ("_fields",)

    def __init__(self, rules: abc.Mapping[str, Any], pointer: str = "") -> None:
        """``rules``: see above. Raises InvalidInput that points to what is wrong, below ``pointer``."""
        if len(rules) > MAX_FIELDS:
            raise InvalidInput(f"A mapping has at most {MAX_FIELDS} fields, not {len(rules)}.", pointer=pointer)
        self._fields = [_field(name, rule, pointer) for name, rule in rules.items()]

    def __bool__(self) -> bool:
        return bool(self._fields)

    def apply(self, record: Record) -> dict[str, Any]:
        """The payload: JSON values only, at most ``MAX_ENTITY_BYTES``. Raises MappingError."""
        return self.apply_and_hash(record)[0]

    def apply_and_hash(self, record: Record) -> tuple[dict[str, Any], str]:
        """The payload and its ``content_hash``, for little more than one of them."""
        if not isinstance(record, abc.Mapping):
            raise MappingError("", f"the record is {_shown(record)}, no object")
        payload = {field.name: field.of(record) for field in self._fields} if self._fields else dict(record)
        return payload, hashlib.sha256(canonical(payload)).hexdigest()


def _field(name: str, rule: Any, pointer: str) -> _Field:
    here = f"{pointer}/{name[:200].replace('~', '~0').replace('/', '~1')}"
    if not name or len(name) > 200 or "\x00" in name:
        raise InvalidInput("The name of a field has 1 to 200 characters, and no NUL.", pointer=here)
    if isinstance(rule, str):
        return _Field(name, _Rule(path=rule), Expression(rule, here), here)
    if not isinstance(rule, abc.Mapping):
        raise InvalidInput(f"{name!r} is mapped by an expression or by an object.", pointer=here)
    asked = parse(_Rule, rule, here)
    if (asked.path is None) == ("value" not in asked.model_fields_set):
        raise InvalidInput(f"{name!r} needs either a path or a value.", pointer=here)
    if asked.transform and asked.type not in {"string", "json"}:
        raise InvalidInput("Only text is transformed: let the type be string.", pointer=f"{here}/transform")
    return _Field(name, asked, None if asked.path is None else Expression(asked.path, f"{here}/path"), here)


# --- entities --------------------------------------------------------------------------------------------------------


def canonical(payload: Record) -> bytes:
    """The payload as JSON in UTF-8 that is the same for equal payloads: keys sorted, no spaces.

    MappingError, if it is no JSON that a database can keep (see ``jobq.validation.check_json``), or too large.
    """
    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        raw = text.encode()
    except (TypeError, ValueError, RecursionError):
        _refuse(payload)
        raise MappingError("", "the entity is no JSON") from None
    if len(raw) > MAX_ENTITY_BYTES:
        largest = max(payload, key=lambda name: len(json.dumps(payload[name], default=str)))
        raise MappingError(
            largest,
            f"the entity takes {len(raw):,} bytes; at most {MAX_ENTITY_BYTES:,} are accepted, and this is most of it",
        )
    # Only an escape can be a NUL, and few brackets cannot be deep: most entities need no walk.
    if "\\u0000" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        _refuse(payload)
    return raw


def _refuse(payload: Record) -> None:
    """Say what of the payload cannot be kept, if anything."""
    for name, value in payload.items():
        try:
            check_json({name: value}, max_bytes=MAX_ENTITY_BYTES)
        except InvalidInput as error:
            raise MappingError(str(name), error.message.rstrip(".")) from None


def content_hash(payload: Record) -> str:
    """SHA-256 in hex of the payload's canonical JSON: what tells a changed entity from an unchanged one."""
    return hashlib.sha256(canonical(payload)).hexdigest()


def entity_key(record: Record, expression: Expression) -> str:
    """The text that identifies a record in its domain. MappingError ``key``, if there is none that can be kept."""
    if not isinstance(record, abc.Mapping):
        raise MappingError("", f"the record is {_shown(record)}, no object")
    found = expression.of(record, "key")
    if found is None or found == "":
        raise MappingError("key", f"{_shown(expression.text)} is empty or not there")
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise MappingError("key", f"{_shown(found)} is neither text nor an integer")
    if isinstance(found, str):
        if "\x00" in found or any("\ud800" <= char <= "\udfff" for char in found):
            raise MappingError("key", f"{_shown(found)} contains a NUL or half of a surrogate pair")
        if len(found) > MAX_KEY_LENGTH or len(found.encode()) > MAX_KEY_BYTES:
            raise MappingError(
                "key",
                f"{_shown(found)} has {len(found)} characters; at most {MAX_KEY_LENGTH} ({MAX_KEY_BYTES} bytes) are accepted",
            )
        return found
    if abs(found) >= 10**MAX_KEY_LENGTH:
        raise MappingError("key", "the number has too many digits")
    return str(found)


def _shown(value: Any) -> str:
    """A value for a message: short, on one line, and never what is inside of it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:59] + "…")
    if isinstance(value, abc.Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    return str(value)[:60] if isinstance(value, int | float) else f"a {type(value).__name__}"
