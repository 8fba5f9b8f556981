"""The command line over HTTP: JOBQ_DATABASE_URL is the address of an API, and the verbs are the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq import JobQ, Settings
from jobq.api.server import Address, Server
from tests.command import Command

SECRET_KEY = "k" * 40


@pytest.fixture
def owner(sqlite_url: str) -> Iterator[JobQ]:
    with JobQ(settings=Settings(database_url=sqlite_url, secret_key=SECRET_KEY)) as owner:
        yield owner


@pytest.fixture
def command(owner: JobQ, tmp_path: Path) -> Iterator[Command]:
    """Somebody with a key, who has no way to the database."""
    key = owner.keys.create("ann", "admin", operator=True).key
    server = Server(owner.settings, Address(port=0), owner)
    server.start()
    command = Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=server.address.url, JOBQ_API_KEY=key)
    yield command
    command.close()
    server.stop()


def test_jobs_and_workflows_are_run_by_who_has_a_key_only(command: Command, owner: JobQ, tmp_path: Path) -> None:
    job = command.job("enqueue", "heartbeat", "https://example.org/", "--name", "front page")
    assert [one["id"] for one in command.ok("job", "list", "--status", "PENDING", "--json").items] == [job]
    assert command.ok("job", "show", job, "--json").document["spec"]["endpoint"] == "https://example.org/"
    assert "no live worker" in command.ok("job", "why", job).out
    assert command.ok("job", "logs", job).out == ""
    command.refused("wait_timeout", "job", "wait", job, "--timeout", "0.1", exit_code=3)
    assert "CANCELED" in command.ok("job", "cancel", job).out
    assert command("job", "wait", job).code == 1
    again = command.job("job", "retry", job)

    (tmp_path / "all.yaml").write_text(
        "workflows:\n- {name: page, kind: HEARTBEAT, spec: {endpoint: 'https://example.org/'}, interval: PT5M}\n"
        "---\n{kind: Connector, name: crm, type: http, config: {url: 'https://crm.example'}}\n"
    )
    assert "created" in command.ok("workflow", "apply", "-f", "all.yaml").out
    started = command.job("workflow", "trigger", "page")
    assert "PAUSED" in command.ok("workflow", "pause", "page").out
    assert [one["name"] for one in command.ok("connector", "list", "--json").items] == ["crm"]
    assert {str(one.id) for one in owner.list().items} == {job, again, started}

    command.ok("secret", "set", "token", stdin="s3cr3t\n")
    assert "token" in command.ok("secret", "list").out
    command.ok("queue", "pause", "heartbeat")
    assert command.ok("queue", "list", "--json").items[0]["paused"] is True
    command.ok("worker", "list")
    command.ok("tenant", "weight", "acme", "2")
    assert command.ok("key", "create", "deploy").out.startswith("jobq_")
    command.ok("prune", "--older-than", "P365D")
    assert "jobq_" not in command.ok("config").out, "the key is masked"


def test_what_needs_the_database_says_so(command: Command) -> None:
    for arguments in (("db", "check"), ("dev",), ("api",)):
        command.refused("needs_database", *arguments)
    command.refused("unauthorized", "job", "list", env={"JOBQ_API_KEY": "jobq_" + "x" * 43})
    command.refused("validation_error", "enqueue", "heartbeat", "https://example.org/", "--priority", "11")
