"""OpenAPI links: what can be asked about a thing that was just made. Drawn from the routes, so that none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_IDS = {
    "Job": ("job_id", "$response.body#/id"),
    "Workflow": ("workflow_id", "$response.body#/id"),
    "KeyMade": ("key_id", "$response.body#/stored/id"),
}
"""Schema of what was made → the parameter of paths that takes its id, and where the id is."""


def draw(document: dict[str, Any]) -> None:
    """Link each answer 201 to every operation on what it made."""
    for _, _, operation in _operations(document):
        made = operation["responses"].get("201")
        name = _schema_name(made) if made is not None else None
        if made is None or name not in _IDS:
            continue
        parameter, place = _IDS[name]
        made["links"] = {
            target["operationId"]: {"operationId": target["operationId"], "parameters": {parameter: place}}
            for path, _, target in _operations(document)
            if f"{{{parameter}}}" in path and path.count("{") == 1
        }


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _schema_name(answer: dict[str, Any]) -> str | None:
    reference = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return str(reference).rpartition("/")[2] or None
