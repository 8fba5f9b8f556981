"""Workflows and connectors in a YAML file, as ``jobq workflow apply -f`` and ``jobq connector apply -f`` take them.

A document is a list of workflows, an object ``workflows: [...]``, or one workflow; a file may hold several documents.
Where a workflow may stand, ``kind: Connector`` makes it a connector (the fields of ``jobq.connections.Connector``).
YAML is cut down to what JSON can say, so that a file means the same here and over HTTP: no aliases (a few hundred
bytes of them can stand for gigabytes), no duplicate keys, and dates stay text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobq.connections import Connector
from jobq.definition import Definition
from jobq.errors import InvalidInput, JobQError
from jobq.validation import MAX_BYTES, MAX_DEPTH, check_json, located, parse

if TYPE_CHECKING:
    from jobq.settings import Settings

_CONNECTOR = "Connector"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml, where it is built in
    yaml_implicit_resolvers = {  # noqa: RUF012  it overrides PyYAML's table
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are text, each there once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused("a key must be text", key_node.start_mark)
            if key in seen:
                raise _refused(f"the key {key[:100]!r} comes twice", key_node.start_mark)
            seen.add(key)
        built: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return built


@dataclass(slots=True)
class Manifest:
    """What a file says, in its order. Workflows may name the connectors beside them: apply those first."""

    workflows: list[Definition] = field(default_factory=list)
    connectors: list[Connector] = field(default_factory=list)


def load_file(source: Path | str, settings: Settings | None = None) -> list[Definition]:
    """The workflows in a file (a Path) or in YAML text (a str), in order; ``checked``, if settings are given.

    As ``load_manifest``; InvalidInput also for a file that holds connectors.
    """
    found = load_manifest(source, settings)
    if found.connectors:
        raise InvalidInput("The file holds connectors too.", hint="Read it with load_manifest.")
    return found.workflows


def load_manifest(source: Path | str, settings: Settings | None = None) -> Manifest:
    """The workflows and connectors in a file (a Path) or in YAML text (a str); ``checked``, if settings are given.

    All or nothing: the first bad one raises, and the message says which it is (counted from 1) and its pointer
    where in its document. InvalidInput ``invalid_yaml`` for what is no YAML or more than JSON can say,
    ``payload_too_large`` above 256 KiB, ``validation_error`` for a name that comes twice.
    """
    text = _read(source)
    found = Manifest()
    names: dict[tuple[str, str], int] = {}
    for pointer, item in _items(_documents(text)):
        of_connector = isinstance(item, dict) and item.get("kind") == _CONNECTOR
        noun, known = ("connector", found.connectors) if of_connector else ("workflow", found.workflows)
        number = len(known) + 1
        what = f"{noun.title()} {number}"
        if isinstance(item, dict) and isinstance(name := item.get("name"), str):
            what += f" ({name[:100]!r})"
        try:
            check_json(item)
            one = _connector(item, settings) if of_connector else parse(Definition, item)
            if one.name is not None and (first := names.setdefault((noun, one.name), number)) != number:
                raise InvalidInput(f"The name is taken by {noun} {first} of this file.", pointer="/name")
            if isinstance(one, Connector):
                found.connectors.append(one)
            else:
                found.workflows.append(one.checked(settings) if settings else one)
        except JobQError as error:
            raise located(error, what, pointer) from None
    if not found.workflows and not found.connectors:
        raise InvalidInput("The file holds no workflow.", hint="Write a list of workflows, or 'workflows: [...]'.")
    return found


def _connector(item: dict[str, Any], settings: Settings | None) -> Connector:
    connector = parse(Connector, {name: value for name, value in item.items() if name != "kind"})
    if settings is not None:
        connector.check(settings.policy)
    return connector


def load_spec(source: Path | str) -> dict[str, Any]:
    """The spec of one job: a file (a Path) or YAML text (a str) that holds one object, as JSON could say it."""
    documents = [document for document in _documents(_read(source)) if document is not None]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InvalidInput("The file must hold one object: the spec of a job.")
    check_json(documents[0])
    spec: dict[str, Any] = documents[0]
    return spec


def _read(source: Path | str) -> str:
    try:
        raw = source.encode() if isinstance(source, str) else source.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"The file {str(source)!r} cannot be read: {error.strerror}.") from None
    except UnicodeError:
        raise InvalidInput("The file is not UTF-8.", code="invalid_yaml") from None
    if len(raw) > MAX_BYTES:
        raise InvalidInput(
            f"The file takes {len(raw)} bytes; at most {MAX_BYTES} are accepted.",
            code="payload_too_large",
            hint="Split it.",
        )
    return text


def _documents(text: str) -> list[Any]:
    """What the YAML documents say, after a look at their structure: nothing is built that could explode."""
    try:
        _refuse_tricks(text)
        return list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:
        problem, where = getattr(error, "problem", None) or str(error), ""
        if (mark := getattr(error, "problem_mark", None)) is not None:
            where = f" (line {mark.line + 1}, column {mark.column + 1})"
        raise InvalidInput(f"The file is no valid YAML: {problem}{where}.", code="invalid_yaml") from None


def _refuse_tricks(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases (*name) are not available: write the value out", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refused(f"it is nested deeper than {MAX_DEPTH} levels", event.start_mark)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _items(documents: list[Any]) -> Iterator[tuple[str, Any]]:
    """Each workflow of a file and its JSON pointer within its document."""
    for document in documents:
        if document is None:
            continue
        if isinstance(document, list):
            yield from ((f"/{number}", item) for number, item in enumerate(document))
        elif not isinstance(document, dict):
            raise InvalidInput(
                "A document of the file is neither a list nor an object.",
                hint="Write a list of workflows, or 'workflows: [...]'. In Python, pass a Path to read a file.",
            )
        elif "workflows" not in document:
            yield "", document
        elif len(document) > 1 or not isinstance(document["workflows"], list):
            raise InvalidInput("'workflows' must be a list and stand alone in its document.", pointer="/workflows")
        else:
            yield from ((f"/workflows/{number}", item) for number, item in enumerate(document["workflows"]))
