"""The documents hold: their code runs, their commands and settings exist, their links lead somewhere."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobq import JobQ, Settings
from jobq.api.server import Address, Server
from jobq.manifest import load_file
from jobq.settings import Policy, Quota
from jobq.testing import running
from tests.command import Command
from tests.doubles import STAND_INS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
API = "http://127.0.0.1:8321"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, *languages: str) -> list[str]:
    """The code blocks of a document in these languages, in order."""
    return [code for language, code in BLOCK.findall((ROOT / document).read_text()) if language in languages]


def having(*languages: str) -> list[str]:
    return [document for document in DOCUMENTS if blocks(document, *languages)]


# --- Python ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JobQ]:
    """What a reader has: a database in the environment, and workers that run jobs (without network or Docker)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("JOBQ_SECRET_KEY", "a key that only this test knows")
    monkeypatch.setenv("JOBQ_POLICY__AREAS", json.dumps([str(tmp_path)]))
    with running(Settings(plugins=STAND_INS)) as jobq:
        monkeypatch.setenv("JOBQ_DATABASE_URL", jobq.settings.database_url)
        yield jobq


@pytest.mark.parametrize("document", having("python"))
def test_python_in_documents_runs_from_top_to_bottom(
    document: str, installation: JobQ, request: pytest.FixtureRequest
) -> None:
    names: dict[str, object] = {"__name__": "document"}
    text = (ROOT / document).read_text()
    if API in "".join(blocks(document, "python")):
        server = Server(installation.settings, Address(port=0), installation)
        text = text.replace(API, server.address.url)
        server.start()
        request.addfinalizer(server.stop)
    for code in (code for language, code in BLOCK.findall(text) if language == "python"):
        line = text[: text.index(code)].count("\n")
        exec(compile("\n" * line + code, document, "exec"), names)
    assert installation.list().items
    for opened in names.values():
        if isinstance(opened, JobQ):
            opened.close()
        if type(opened).__name__ == "Engine":
            opened.dispose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", having("yaml"))
def test_yaml_in_documents_is_what_workflow_apply_takes(document: str) -> None:
    for text in blocks(document, "yaml"):
        if "workflows" in yaml.safe_load(text):
            assert load_file(text, Settings())


@pytest.mark.parametrize("document", having("toml"))
def test_toml_in_documents_is_toml(document: str) -> None:
    for text in blocks(document, "toml"):
        assert tomllib.loads(text)


# --- commands and settings -------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every different call of jobq in a document: without its comment, its environment and its prompt."""
    found = set()
    for document in DOCUMENTS:
        for line in "".join(blocks(document, "sh", "console", "bash")).splitlines():
            call = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(jobq .*?)(?:\s+#.*|\s*[|&].*)?$", line)
            if call:
                found.add(call[1])
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_a_command_in_a_document_exists_with_its_options(command: str, tmp_path: Path) -> None:
    words, _, _ = command.partition(" -- ")
    names = re.match(r"jobq((?: [a-z][a-z-]*)*)", words)
    assert names
    jobq = Command(tmp_path, is_warm=True)
    known = jobq.ok("--help").out + jobq.ok(*names[1].split(), "--help").out

    assert not [option for option in re.findall(r"\s(--?[a-zA-Z][\w-]*)", words) if option not in known]


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        named = set(re.findall(r"^make (\w+)|`make (\w+)", text, re.MULTILINE))
        assert {one or other for one, other in named} <= targets, document


def test_settings_in_documents_exist() -> None:
    settings = {f"JOBQ_{name.upper()}" for name in Settings.model_fields}
    settings |= {f"JOBQ_POLICY__{name.upper()}" for name in Policy.model_fields}
    settings |= {f"JOBQ_QUOTA__{name.upper()}" for name in Quota.model_fields}
    elsewhere = {
        "JOBQ_CONFIG", "JOBQ_QUEUES",  # read where settings are not there yet
        "JOBQ_JOB_ID", "JOBQ_ATTEMPT", "JOBQ_TENANT", "JOBQ_JOB_NAME", "JOBQ_TRIGGER",  # in containers
        "JOBQ_POSTGRES_PASSWORD", "JOBQ_DOCKER_GID",  # docker-compose.yml
    }  # fmt: skip
    for document in DOCUMENTS:
        named = set(re.findall(r"\bJOBQ_[A-Z_]+[A-Z]\b", (ROOT / document).read_text()))
        assert named <= settings | elsewhere, document


# --- links -----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    source = ROOT / document
    text = re.sub(BLOCK, "", source.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (source.parent / path).resolve() if path else source
        assert there.exists(), f"{document}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{document}: {target}"


def test_tests_that_documents_name_exist() -> None:
    """docs/reliability.md names the test of each fault: ``tests/…/test_x.py::test_y``, or the test alone."""
    defined = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for document in DOCUMENTS:
        for name in re.findall(r"\b(test_\w+)`", (ROOT / document).read_text()):
            assert f"def {name}(" in defined or (ROOT / "tests").rglob(f"{name}.py"), f"{document}: {name}"


def test_the_readme_opens_with_lines_that_run() -> None:
    first = blocks("README.md", "sh")[0].splitlines()
    assert [line.split()[:2] for line in first] == [["make", "run"], ["make", "test"]]
