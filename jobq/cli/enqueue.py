"""``jobq enqueue``: single jobs, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from jobq.cli.made import report
from jobq.cli.options import JobOptions, WaitOptions, WorkOptions, given, read_json, read_yaml, spread
from jobq.cli.session import connected
from jobq.errors import InvalidInput

_ANY_KIND = "KIND"


class _Kinds(TyperGroup):
    """Every word that is no command names a kind: plugins bring their own."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, _ANY_KIND)


app = typer.Typer(cls=_Kinds, no_args_is_help=True, help="Enqueue one job; prints its id.")


@dataclass(frozen=True)
class ContainerOptions:
    """The fields of ``jobq.specs.Container`` that fit a command line."""

    env: Annotated[
        list[str] | None, Option("--env", "-e", metavar="NAME=VALUE", help="Environment variable; repeatable.")
    ] = None
    secret: Annotated[
        list[str] | None, Option(metavar="FILE=NAME", help="Secret NAME as /run/secrets/FILE; repeatable.")
    ] = None
    entrypoint: Annotated[
        list[str] | None, Option(metavar="WORD", help="Replaces the image's entry point; repeatable, a word each.")
    ] = None
    workdir: Annotated[str | None, Option(help="Working directory in the container.")] = None
    user: Annotated[str | None, Option(help="User and group in the container; default: 65534:65534.")] = None
    memory: Annotated[str | None, Option(help="Limit, such as 64MB; default: 256MB.")] = None
    cpus: Annotated[float | None, Option(help="Limit; default: 1.")] = None
    pids: Annotated[int | None, Option(help="Limit of processes; default: 128.")] = None
    network: Annotated[str | None, Option(help="A Docker network that the operator allows; default: none.")] = None
    pull: Annotated[str | None, Option(metavar="missing|always|never", help="When to pull; default: missing.")] = None
    registry_secret: Annotated[
        str | None, Option(metavar="NAME", help="Secret with the login for the image's registry.")
    ] = None
    output: Annotated[str | None, Option(help="Folder in the container whose files become artifacts.")] = None

    def asked(self) -> dict[str, Any]:
        """As fields of the spec."""
        return given(
            env=_pairs(self.env, "--env", code="invalid_env"), secrets=_pairs(self.secret, "--secret"),
            entrypoint=self.entrypoint, working_dir=self.workdir, user=self.user, memory=self.memory, cpus=self.cpus,
            pids=self.pids, network=self.network, pull=self.pull, registry_secret=self.registry_secret,
            output=self.output,
        )  # fmt: skip


@dataclass(frozen=True)
class HeartbeatOptions:
    """The fields of ``jobq.specs.Heartbeat``."""

    method: Annotated[str | None, Option(metavar="GET|HEAD", help="Default: GET.")] = None
    expect: Annotated[int | None, Option(metavar="STATUS", help="The status that completes the job; default: 200.")] = (
        None
    )
    header: Annotated[
        list[str] | None, Option("--header", "-H", metavar="NAME:VALUE", help="Request header; repeatable.")
    ] = None
    secret_header: Annotated[
        list[str] | None, Option(metavar="NAME:SECRET", help="Request header from a stored secret; repeatable.")
    ] = None
    body_contains: Annotated[str | None, Option(help="Text that the answer must hold.")] = None

    def asked(self) -> dict[str, Any]:
        """As fields of the spec."""
        headers = _pairs(self.header, "--header", separator=":")
        return given(
            method=self.method, expected_status_code=self.expect, headers=headers,
            secret_headers=_pairs(self.secret_header, "--secret-header", separator=":"),
            body_contains=self.body_contains,
        )  # fmt: skip


@dataclass(frozen=True)
class SyncOptions:
    """What is changed in a Sync for one run."""

    changes: Annotated[
        list[str] | None,
        Option("--set", metavar="FIELD=VALUE", help="Change a field, such as source.config.url; repeatable."),
    ] = None
    entity: Annotated[str | None, Option(metavar="KEY", help="Only the entity with this key.")] = None
    dry_run: Annotated[bool, Option("--dry-run", help="Write nothing; show what each target would get.")] = False
    override_start_date: Annotated[
        str | None, Option(metavar="RFC3339", help="Read what changed since then; the stored state stays as it is.")
    ] = None

    def applied(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The spec with the changes."""
        for name, value in (_pairs(self.changes, "--set") or {}).items():
            _change(spec, name, _json_or_text(value))
        return {
            **spec,
            **given(
                entity=self.entity, override_start_date=self.override_start_date, dry_run=self.dry_run or None
            ),
        }  # fmt: skip


def _json_or_text(text: str) -> Any:
    from jobq.validation import parse_json

    try:
        return parse_json(text)
    except InvalidInput:
        return text


def _change(spec: Any, path: str, value: Any) -> None:
    """Set what a path of names and numbers with dots between them leads to; objects on the way are made."""
    *way, last = path.split(".")
    place = spec
    for step in way:
        place = place.setdefault(step, {}) if isinstance(place, dict) else place[_number(step, place, path)]
    if isinstance(place, dict):
        place[last] = value
    else:
        place[_number(last, place, path)] = value


def _number(step: str, place: Any, path: str) -> int:
    if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
        return int(step)
    raise InvalidInput(f"--set: {path[:100]!r} leads nowhere.", hint="Elements of a list are counted from 0.")


def _pairs(
    texts: list[str] | None, option: str, *, separator: str = "=", code: str | None = None
) -> dict[str, str] | None:
    """``NAME=VALUE`` as a mapping. The value is never repeated in a message: it may be a secret."""
    if not texts:
        return None
    pairs = {}
    for text in texts:
        name, found, value = text.partition(separator)
        if not found:
            raise InvalidInput(f"{option} needs a name and a value.", code=code, hint=f"Write NAME{separator}VALUE.")
        pairs[name.strip() if separator == ":" else name] = value.strip() if separator == ":" else value
    return pairs


@app.command()
@spread
def container(
    context: typer.Context,
    image: Annotated[str, Argument(metavar="IMAGE", help="Image reference.", show_default=False)],
    *,
    container: ContainerOptions,
    job: JobOptions,
    work: WorkOptions,
    after: WaitOptions,
    command: Annotated[
        list[str] | None,
        Argument(
            metavar="[COMMAND]...", help="Command; put -- before one that has options of its own.", show_default=False
        ),
    ] = None,
) -> None:
    """Run a container to its end.

    jobq enqueue container --memory 64MB alpine -- sh -c 'echo hello'
    """
    spec = {"image": image, **given(command=command), **container.asked()}
    _enqueue(context, "CONTAINER", spec, {**job.asked(), **work.asked()}, after)


@app.command()
@spread
def heartbeat(
    context: typer.Context,
    url: Annotated[str, Argument(metavar="URL", help="The endpoint to probe.", show_default=False)],
    *,
    probe: HeartbeatOptions,
    job: JobOptions,
    work: WorkOptions,
    after: WaitOptions,
) -> None:
    """Probe an HTTP endpoint once.

    jobq enqueue heartbeat --expect 200 https://example.org/
    """
    _enqueue(context, "HEARTBEAT", {"endpoint": url, **probe.asked()}, {**job.asked(), **work.asked()}, after)


@app.command()
@spread
def sync(
    context: typer.Context,
    file: Annotated[str, Option("--file", "-f", help="YAML file of the Sync; - reads stdin.", show_default=False)],
    *,
    sync: SyncOptions,
    job: JobOptions,
    work: WorkOptions,
    after: WaitOptions,
) -> None:
    """Read entities from a source, and write what is new or has changed to the targets.

    jobq enqueue sync -f customers.yaml --set mode=incremental
    """
    from jobq.manifest import load_spec

    spec = sync.applied(load_spec(read_yaml(file)))
    _enqueue(context, "SYNC", spec, {**job.asked(), **work.asked()}, after)


@app.command(_ANY_KIND)
@spread
def any_kind(
    context: typer.Context,
    job: JobOptions,
    work: WorkOptions,
    after: WaitOptions,
    spec: Annotated[str, Option(metavar="JSON", help="The spec; @FILE reads a file, @- stdin.")] = "{}",
) -> None:
    """A job of any kind; plugins bring their own.

    jobq enqueue GREETING --spec '{"name": "Ada"}'
    """
    name = context.info_name or ""
    kind = name.upper() if name.islower() else name
    _enqueue(context, kind, read_json(spec, "--spec"), {**job.asked(), **work.asked()}, after)


def _enqueue(context: typer.Context, kind: str, spec: Any, fields: dict[str, Any], after: WaitOptions) -> None:
    with connected(context) as jobq:
        report(jobq, jobq.enqueue(spec, kind=kind, **fields), after)
