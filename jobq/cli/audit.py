"""``jobq audit``: who did what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from jobq.cli.options import AsJson, given, spread
from jobq.cli.output import ago, note, plain, said, write_listing, write_table
from jobq.cli.session import connected

if TYPE_CHECKING:
    from datetime import datetime


@dataclass
class AuditOptions:
    """Which events."""

    actor: Annotated[str | None, Option(help="Text in the name, or the id of an API key.")] = None
    action: Annotated[str | None, Option(help="Such as cancel, pause, create.")] = None
    subject: Annotated[str | None, Option(help="Such as workflow:ID, or workflow for all.")] = None
    since: Annotated[str | None, Option(metavar="RFC3339", help="From this instant on.")] = None
    until: Annotated[str | None, Option(metavar="RFC3339", help="Before this instant.")] = None
    limit: Annotated[int, Option(help="1 to 200.")] = 50
    cursor: Annotated[str | None, Option(help="Go on behind an earlier listing, with the same filters.")] = None

    def asked(self) -> dict[str, Any]:
        """As arguments of ``JobQ.audit``."""
        instants = {name: _instant(value) for name in ("since", "until") if (value := getattr(self, name)) is not None}
        return given(**{**vars(self), **instants})


def _instant(text: str) -> datetime:
    from jobq.schedule import parse_rfc3339

    return parse_rfc3339(text)


@spread
def audit(
    context: typer.Context,
    *,
    wanted: AuditOptions,
    everything: Annotated[bool, Option("--all", help="Of all tenants, and what concerns none.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who did what, the newest first: everything that people and programs did on purpose, but plain enqueues."""
    with connected(context) as jobq:
        page = jobq.audit(**wanted.asked(), everything=everything)
    if as_json:
        write_listing(page.items, page.next_cursor)
        return
    rows = (
        (ago(one.at), plain(one.actor), one.action, plain(one.subject), said(one.detail) if one.detail else None)
        for one in page.items
    )
    write_table(("WHEN", "WHO", "DID", "TO", "DETAIL"), rows, empty="There is no such event.", cut="DETAIL")
    if page.next_cursor:
        note(f"There are more: --cursor {page.next_cursor}")
