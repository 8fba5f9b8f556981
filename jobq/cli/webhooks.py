"""``jobq webhook``: who is told what happens to jobs, and what became of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson
from jobq.cli.output import ago, plain, say, write, write_json, write_listing, write_table
from jobq.cli.session import connected, parse_key
from jobq.errors import InvalidInput

if TYPE_CHECKING:
    from jobq.client import JobQ
    from jobq.webhooks import SecretMade

app = typer.Typer(no_args_is_help=True, help="Tell other systems what happens to jobs: endpoints, deliveries, replay.")
Webhook = Annotated[str, Argument(metavar="ID|NAME", help="The webhook.", show_default=False)]
SecretFile = Annotated[
    Path | None, Option("--secret-file", metavar="FILE", help="Holds the secret (whsec_…); else one is made.")
]
_POLL = 0.1


@app.command()
def add(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    url: Annotated[str, Argument(metavar="URL", help="Where to POST to.", show_default=False)],
    *,
    name: Annotated[str | None, Option(help="Else one is assigned.")] = None,
    event: Annotated[
        list[str] | None, Option("--event", "-e", metavar="PATTERN", help="Such as 'job.*'; else all.")
    ] = None,
    only_named: Annotated[
        bool, Option("--only-named", help="No events but those of jobs that name this webhook.")
    ] = False,
    children: Annotated[bool, Option("--children", help="Events of SYNCs' children, too.")] = False,
    hub: Annotated[
        list[str] | None, Option("--hub", metavar="sha256|sha1", help="X-Hub-Signature headers as well.")
    ] = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Add an endpoint. Its secret is printed on stdout, this once."""
    if only_named and event:
        raise InvalidInput("--only-named listens to no event: leave out --event.")
    events = [] if only_named else event or ["*"]
    secret = _secret(secret_file)
    with connected(context) as jobq:
        made = jobq.webhooks.create(
            url=url, name=name, events=events, children=children, hub_signature=hub or [], secret=secret
        )
    _show_secret(made, f"added {plain(made.endpoint.name)}, {made.endpoint.id}", as_json=as_json)


def _secret(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"The file of the secret cannot be read: {error}.", pointer="/secret") from None


def _show_secret(made: SecretMade, what: str, *, as_json: bool) -> None:
    if as_json:
        write_json(made)
        return
    say(f"{what}: its secret is not shown again", stderr=True)
    write(made.secret + "\n")


@app.command("list")
def list_webhooks(context: typer.Context, as_json: AsJson = False) -> None:
    """The endpoints, and how they are."""
    with connected(context) as jobq:
        found = jobq.webhooks.list()
    if as_json:
        write_listing(found)
        return
    rows = (
        (one.id, plain(one.name), plain(one.url), plain(" ".join(one.events) or "(named only)"), _state(one), ago(one.succeeded_at))
        for one in found
    )  # fmt: skip
    head = ("ID", "NAME", "URL", "EVENTS", "STATE", "SUCCEEDED")
    write_table(head, rows, empty="There is no webhook. Add one: jobq webhook add URL")


def _state(one: object) -> str:
    if not one.enabled:  # type: ignore[attr-defined]
        return plain(f"disabled: {one.disabled_reason}")  # type: ignore[attr-defined]
    since = one.failing_since  # type: ignore[attr-defined]
    return "ok" if since is None else f"failing since {ago(since)}"


@app.command()
def show(context: typer.Context, webhook: Webhook) -> None:
    """One endpoint, as JSON."""
    with connected(context) as jobq:
        write_json(jobq.webhooks.get(parse_key(webhook)))


@app.command()
def remove(context: typer.Context, webhook: Webhook) -> None:
    """Send nothing more to it, and forget what was sent."""
    with connected(context) as jobq:
        jobq.webhooks.delete(parse_key(webhook))
    say(f"removed {plain(webhook)}")


@app.command()
def enable(context: typer.Context, webhook: Webhook) -> None:
    """Send to it again, beginning with what was due when it was disabled."""
    with connected(context) as jobq:
        jobq.webhooks.enable(parse_key(webhook))
    say(f"enabled {plain(webhook)}")


@app.command()
def disable(context: typer.Context, webhook: Webhook) -> None:
    """Send nothing to it until it is enabled again; what is due waits."""
    with connected(context) as jobq:
        jobq.webhooks.update(parse_key(webhook), enabled=False)
    say(f"disabled {plain(webhook)}")


@app.command()
def rotate(
    context: typer.Context,
    webhook: Webhook,
    *,
    overlap: Annotated[str, Option(metavar="DURATION", help="For how long the old secret signs, too.")] = "P1D",
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Give it a new secret, which is printed on stdout, this once."""
    with connected(context) as jobq:
        made = jobq.webhooks.rotate(parse_key(webhook), overlap=overlap, secret=_secret(secret_file))
    _show_secret(made, f"rotated {plain(made.endpoint.name)}", as_json=as_json)


@app.command("test")
def send_test(
    context: typer.Context,
    webhook: Webhook,
    *,
    wait: Annotated[float, Option(min=0, help="Seconds to wait for what becomes of it.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Send it the event webhook.test, and tell what it answered. Exit code 1: it did not take it."""
    with connected(context) as jobq:
        delivery = jobq.webhooks.test(parse_key(webhook))
        ends = time.monotonic() + wait
        while delivery.tried_at is None or (delivery.state == "PENDING" and delivery.message is None):
            if time.monotonic() > ends:
                break
            time.sleep(_POLL)
            delivery = jobq.webhooks.delivery(parse_key(webhook), delivery.id)
    if as_json:
        write_json(delivery)
    elif delivery.state == "SUCCEEDED":
        say(f"it answered {delivery.status_code} in {(delivery.seconds or 0) * 1000:.0f} ms")
    else:
        say(plain(delivery.message or "nothing was sent yet: does a scheduler run?"), stderr=True)
    raise typer.Exit(0 if delivery.state == "SUCCEEDED" else 1)


@app.command()
def deliveries(
    context: typer.Context,
    webhook: Webhook,
    *,
    state: Annotated[str | None, Option(metavar="pending|succeeded|failed", help="Only these.")] = None,
    limit: Annotated[int, Option(min=1, max=200, help="How many at most.")] = 50,
    cursor: Annotated[str | None, Option(help="next_cursor of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was, or is to be, delivered to it, the newest first."""
    wanted = None if state is None else state.upper()
    if wanted not in {None, "PENDING", "SUCCEEDED", "FAILED"}:
        raise InvalidInput(f"{plain(state)!r} is no state of a delivery.", hint="pending, succeeded or failed.")
    with connected(context) as jobq:
        page = jobq.webhooks.deliveries(parse_key(webhook), state=wanted, limit=limit, cursor=cursor)  # type: ignore[arg-type]
    if as_json:
        write_listing(page.items, page.next_cursor)
        return
    rows = (
        (one.id, one.type, one.job_id, one.number, one.state, one.tries, one.status_code or one.error_class or "",
         ago(one.created_at), ago(one.next_at), plain(one.message or ""))
        for one in page.items
    )  # fmt: skip
    head = ("ID", "EVENT", "JOB", "NO", "STATE", "TRIES", "ANSWER", "CREATED", "NEXT", "MESSAGE")
    write_table(head, rows, empty="Nothing was to be delivered to it.")


@app.command()
def replay(
    context: typer.Context,
    webhook: Webhook,
    delivery: Annotated[int | None, Argument(metavar="DELIVERY", help="Its id.", show_default=False)] = None,
    failed_since: Annotated[
        str | None, Option(metavar="INSTANT", help="All that failed for good of the events since then (RFC 3339).")
    ] = None,
) -> None:
    """Send again, under the same webhook-id: one delivery, or all that failed since an instant."""
    if (delivery is None) == (failed_since is None):
        raise InvalidInput("Say either which delivery, or --failed-since.")
    with connected(context) as jobq:
        count = _replay(jobq, webhook, delivery, failed_since)
    say(f"{count} {'is' if count == 1 else 'are'} sent again")


def _replay(jobq: JobQ, webhook: str, delivery: int | None, failed_since: str | None) -> int:
    if delivery is not None:
        jobq.webhooks.replay(parse_key(webhook), delivery)
        return 1
    assert failed_since is not None
    return jobq.webhooks.replay_failed(parse_key(webhook), failed_since)
