"""docs/connectors.md holds: its YAML is what the connectors take, its Python passes the contract."""

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
import yaml

from jobq.connections import Connector, check_no_secret, configuration
from jobq.settings import Policy
from jobq.sync import SourceSpec, TargetSpec
from jobq.testing import SourceContract, TargetContract
from jobq.validation import parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "connectors.md").read_text()
POLICY = Policy(areas=["/data", "s3://acme-exchange"])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def built_in(group: str) -> dict[str, type[Any]]:
    """The connectors that pyproject.toml registers, whether this version of it is installed or not."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group]
    places = {name: place.split(":") for name, place in points.items()}
    return {name: getattr(import_module(module), kind) for name, (module, kind) in places.items()}


SOURCES, TARGETS = built_in("jobq.sources"), built_in("jobq.targets")
PYTHON: dict[str, Any] = {"__name__": "document"}
exec(compile("\n".join(blocks("py")), "docs/connectors.md", "exec"), PYTHON)
CONTRACTS = [
    (kind, name)
    for kind in (PYTHON["TestCountries"], PYTHON["TestPhonebook"])
    for name, _ in inspect.getmembers(kind, inspect.isfunction)
    if name.startswith("test_")
]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_configuration_is_what_the_connector_takes(text: str) -> None:
    document = yaml.safe_load(text)
    if document.get("kind") == "Connector":
        stored = parse(Connector, {name: value for name, value in document.items() if name != "kind"})
        ends = [(SOURCES, stored)]
    else:
        ends = [(SOURCES, parse(SourceSpec, document["source"]))] if "source" in document else []
        ends += [(TARGETS, parse(TargetSpec, target)) for target in document.get("targets", [])]
    assert ends
    for known, end in ends:
        check_no_secret(end.config, end.secrets, "")
        configuration(known[str(end.type)].config, end.config, end.secrets).check(POLICY)


def test_every_built_in_connector_has_an_example_at_both_ends() -> None:
    documents = [yaml.safe_load(text) for text in blocks("yaml")]
    assert {document["source"]["type"] for document in documents if "source" in document} == SOURCES.keys()
    assert {target["type"] for document in documents for target in document.get("targets", [])} == TARGETS.keys()


def test_the_connectors_of_the_page_are_held_to_the_contracts() -> None:
    assert issubclass(PYTHON["TestCountries"], SourceContract)
    assert issubclass(PYTHON["TestPhonebook"], TargetContract)


@pytest.mark.parametrize(("kind", "name"), CONTRACTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_connectors_of_the_page_pass_the_contract(kind: type[Any], name: str) -> None:
    contract = kind()
    getattr(contract, "setup_method", lambda: None)()
    try:
        getattr(contract, name)()
    except SkipTest:
        assert name in {
            "test_one_entity_can_be_read_alone", "test_what_was_seen_does_not_come_again",
            "test_only_what_is_newer_comes_after_a_change", "test_an_incremental_read_goes_on_at_its_cursors",
            "test_a_domain_becomes_one_file", "test_half_a_file_is_never_seen",
            "test_a_target_that_cannot_be_written_says_why",
        }  # fmt: skip
