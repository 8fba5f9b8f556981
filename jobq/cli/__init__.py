"""The command ``jobq``: what people and scripts do with an installation.

One noun a file. Nothing heavy is imported before a command needs it: ``jobq --help`` meets neither SQLAlchemy nor
Celery. Exit codes: 0 done; 1 what was asked about failed; 2 a mistake in the request; 3 the database or the broker
is away, or a wait was too short; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobq.cli import (
    analytics,
    audit,
    configuration,
    connectors,
    database,
    doctor,
    enqueue,
    jobs,
    keys,
    queues,
    secrets,
    service,
    sync,
    tenants,
    webhooks,
    workers,
    workflows,
)
from jobq.cli.problems import tell, tell_defect, tell_usage
from jobq.cli.session import Session
from jobq.errors import JobQError

_ORDER = (
    "enqueue", "job", "workflow", "connector", "sync", "queue", "tenant", "secret", "key", "webhook", "audit", "dev", "scheduler", "worker", "api", "db",
    "analytics", "prune", "config", "doctor",
)  # fmt: skip


class _Commands(TyperGroup):
    """The help lists them in the order in which people meet them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: _ORDER.index(name) if name in _ORDER else 99)


app = typer.Typer(
    name="jobq",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # panels take three times as long to come up
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. No error that jobq knows of shows a stack trace."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that knows no UTF-8
    try:
        done = typer.main.get_command(app)(arguments, prog_name="jobq", standalone_mode=False)
    except JobQError as error:
        return tell(error)
    except typer.TyperException as error:
        return tell_usage(error)
    except Exception:  # noqa: BLE001 - told as what it is, with its trace
        return tell_defect()
    return done if isinstance(done, int) else 0


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"jobq {version('jobq')}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    *,
    database_url: Annotated[str | None, typer.Option(help="The database; else JOBQ_DATABASE_URL.")] = None,
    broker_url: Annotated[str | None, typer.Option(help="The broker; else JOBQ_BROKER_URL.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose jobs and workflows; else JOBQ_TENANT.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="A TOML file of settings; else JOBQ_CONFIG.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A durable job platform: jobs live in the database, workers run them, messages are hints.

    These options come before the command. They win over the environment, which wins over the file.
    """
    flags = {"database_url": database_url, "broker_url": broker_url, "tenant": tenant}
    context.obj = Session({name: value for name, value in flags.items() if value is not None}, config)


app.add_typer(enqueue.app, name="enqueue")
app.add_typer(jobs.app, name="job")
app.add_typer(workflows.app, name="workflow")
app.add_typer(connectors.app, name="connector")
app.add_typer(sync.app, name="sync")
app.add_typer(queues.app, name="queue")
app.add_typer(tenants.app, name="tenant")
app.add_typer(secrets.app, name="secret")
app.add_typer(keys.app, name="key")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(workers.app, name="worker")
app.command()(service.scheduler)
app.command()(service.api)
app.command()(service.dev)
app.add_typer(database.app, name="db")
app.command()(analytics.analytics)
app.command()(database.prune)
app.command()(audit.audit)
app.command()(configuration.config)
app.command()(doctor.doctor)
