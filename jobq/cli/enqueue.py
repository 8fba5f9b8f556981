"""``jobq enqueue``: single jobs, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from jobq.cli.made import report
from jobq.cli.options import JobOptions, WaitOptions, WorkOptions, given, read_json, spread
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
    output: Annotated[str | None, Option(help="Folder in the container whose files become artifacts.")] = None

    def asked(self) -> dict[str, Any]:
        """As fields of the spec."""
        return given(
            env=_pairs(self.env, "--env", code="invalid_env"), secrets=_pairs(self.secret, "--secret"),
            entrypoint=self.entrypoint, working_dir=self.workdir, user=self.user, memory=self.memory, cpus=self.cpus,
            pids=self.pids, network=self.network, pull=self.pull, output=self.output,
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
    body_contains: Annotated[str | None, Option(help="Text that the answer must hold.")] = None

    def asked(self) -> dict[str, Any]:
        """As fields of the spec."""
        headers = _pairs(self.header, "--header", separator=":")
        return given(
            method=self.method, expected_status_code=self.expect, headers=headers, body_contains=self.body_contains
        )


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
