"""``jobq db`` and ``jobq prune``: the schema, and what its retention has outlived."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from jobq.cli.output import count, say
from jobq.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="The schema of the database.")


@app.command()
def upgrade(context: typer.Context) -> None:
    """Bring the database to the version that this release needs; safe to repeat, and from several places at once."""
    from jobq.store import migrations

    with connected(context) as jobq:
        before = migrations.current(jobq.database)
        migrations.upgrade(jobq.database)
    needed = migrations.newest()
    say(f"schema {needed}: nothing to do" if before == needed else f"schema {before or 'none'} → {needed}: done")


@app.command()
def check(context: typer.Context) -> None:
    """Exit 2 unless the database has exactly the version that this release needs."""
    from jobq.store import migrations

    with connected(context) as jobq:
        migrations.check(jobq.database)
    say(f"schema {migrations.newest()}: right")


def prune(
    context: typer.Context,
    older_than: Annotated[
        str | None, Option(metavar="DURATION", help="Instead of JOBQ_RETENTION; a workflow's own retention stays.")
    ] = None,
) -> None:
    """Delete what its retention has outlived (all tenants).

    The scheduler does so every minute.
    """
    with connected(context) as jobq:
        deleted = jobq.prune(older_than)
    say(f"deleted {count(deleted, 'job')}")
