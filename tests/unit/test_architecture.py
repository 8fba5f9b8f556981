"""What the documents say of the code is true, and the code keeps to its layout."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import jobq
from jobq.states import EDGES, REASONS, Reason, Status
from jobq.vocabulary import VOCABULARIES, Meaning

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobq", "workers", "scheduler")
STATES = (ROOT / "docs" / "states.md").read_text()


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after this code."""
    program = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


# --- imports and names -----------------------------------------------------------------------------------------------


def test_importing_jobq_loads_nothing_heavy() -> None:
    heavy = {"celery", "kombu", "redis", "docker", "aiohttp", "aiodocker", "sqlalchemy", "alembic", "pydantic", "rich"}
    assert not loaded_by("import jobq") & heavy


def test_an_application_that_enqueues_meets_neither_celery_nor_docker(tmp_path: Path) -> None:
    code = f"from jobq import JobQ, Heartbeat, Container, Every; JobQ('sqlite:///{tmp_path}/jobq.db').database"
    loaded = loaded_by(code)
    assert "sqlalchemy" in loaded
    assert not loaded & {"celery", "kombu", "redis", "aiohttp", "alembic", "rich", "typer", "workers", "scheduler"}


def test_a_client_over_http_needs_no_database() -> None:
    code = "from jobq.remote.client import RemoteJobQ; RemoteJobQ('https://jobq.example')._wire.pool.client"
    loaded = loaded_by(code)
    assert "httpx2" in loaded
    assert not loaded & {"sqlalchemy", "alembic", "celery", "aiohttp", "fastapi", "rich", "workers"}


def test_the_public_names_are_these() -> None:
    assert sorted(jobq.__all__) == [
        "Attempt", "Conflict", "Container", "Context", "Cron", "Definition", "Every", "Forbidden", "Heartbeat",
        "InvalidInput", "Job", "JobQ", "JobQError", "JobRequest", "Kind", "LogLine", "Misconfigured", "NotFound",
        "Outcome", "Page", "Reason", "RetryPolicy", "Settings", "SourceSpec", "Spec", "Status", "Sync", "TargetSpec",
        "TooMany", "Trigger", "Unavailable", "Workflow", "WorkflowStatus",
    ]  # fmt: skip


@pytest.mark.parametrize("name", jobq.__all__)
def test_a_public_name_leads_somewhere_and_says_what_it_is(name: str) -> None:
    assert getattr(jobq, name).__doc__


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "common", "base", "manager", "misc", "core"}
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem in drawers]
    assert not found


# --- ARCHITECTURE.md -------------------------------------------------------------------------------------------------


def named_paths(text: str) -> set[str]:
    """Paths of files and folders in backquotes, and the file names in the diagram below their headings."""
    return set(re.findall(r"`((?:jobq|workers|scheduler|tests|bench|docs|examples)/[\w./-]*)`", text))


def test_the_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = named_paths(text)
    assert len(named) > 30
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]

    diagram = text.partition("```")[2].partition("```")[0]
    everywhere = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert not set(re.findall(r"\b\w+\.py\b", diagram)) - everywhere


def test_the_architecture_names_every_file_of_the_scheduler() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [path.name for path in (ROOT / "scheduler").glob("[!_]*.py") if path.name not in text]
    assert not missing


# --- docs/states.md --------------------------------------------------------------------------------------------------


def test_the_diagram_of_states_has_exactly_the_edges_of_the_code() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+) : \S", STATES, re.MULTILINE)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {(before.value, after.value) for before, edges in EDGES.items() for after in edges}


def test_every_edge_names_its_actor() -> None:
    labels = re.findall(r"^    [A-Z]+ --> [A-Z]+ : (.+)$", STATES, re.MULTILINE)
    assert all(re.search(r"\((person|scheduler|worker|its owner)", label) for label in labels), labels


def test_the_table_of_reasons_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z]+) \| (\w+) \| \S.* \|$", STATES, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == {(status.value, reason.value) for status, reasons in REASONS.items() for reason in reasons}


def meaning(cell: str) -> Meaning:
    """``PENDING but requeued, QUEUED`` as states."""
    reported = {"with a report": True, "without a report": False}
    states: set[tuple[Status, Reason]] = set()
    said = None
    for item in cell.split(", "):
        found = re.fullmatch(r"([A-Z]+)(?:·(\w+))?(?: but (\w+))?(?: (with(?:out)? a report))?", item)
        assert found, f"{item!r} is no state"
        status = Status(found[1])
        reasons = {Reason(found[2])} if found[2] else REASONS[status] - {found[3]}
        states |= {(status, reason) for reason in reasons}
        said = reported.get(found[4])
    return Meaning(frozenset(states), said)


def test_the_table_of_vocabularies_is_that_of_the_code() -> None:
    table = STATES.partition("## Other vocabularies")[2]
    told: dict[str, dict[str, Meaning]] = {}
    for word, cell in re.findall(r"^\| (\S.*?) \| (.*?) ?\|$", table, re.MULTILINE):
        if word.startswith("**"):
            current = told[word.strip("*")] = {}
        elif told:
            current[word] = meaning(cell)

    assert told == VOCABULARIES
