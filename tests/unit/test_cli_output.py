"""What the CLI prints: harmless to terminals, stable for programs, readable for people."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated
from uuid import UUID

import pytest
import typer
from typer.testing import CliRunner

from jobq.cli.options import given, read_json, spread
from jobq.cli.output import ago, cell, count, document, duration, plain, write_json, write_table
from jobq.cli.problems import exit_code, tell
from jobq.errors import Conflict, Forbidden, InvalidInput, JobQError, Misconfigured, NotFound, Unavailable
from jobq.states import Status

MOVES = "\x1b[2J\x07\r\x9b31m\u202eevil\u2028\x7f"


@pytest.fixture(autouse=True)
def _no_color(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_COLOR", "1")
    return


def test_what_could_steer_a_terminal_is_shown_as_an_escape() -> None:
    assert plain(MOVES) == r"\x1b[2J\x07\r\x9b31m\u202eevil\u2028\x7f"
    assert plain("a\nb\tc é 世界 👩‍🚀") == "a\\nb\tc é 世界 👩‍🚀"
    assert plain("\udcff") == r"\udcff"


def test_rich_markup_is_never_interpreted(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("NAME",), [("[bold red]x[/] :boom:",)], empty="")
    assert capsys.readouterr().out == "NAME\n[bold red]x[/] :boom:\n"


def test_a_json_document_holds_no_character_that_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"text": MOVES + "\n", "umlaut": "ü"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"text": MOVES + "\n", "umlaut": "ü"}
    assert plain(printed.replace("\n", "")) == printed.replace("\n", "")


def test_json_has_rfc_3339_instants_seconds_and_text_ids() -> None:
    at = datetime(2026, 3, 1, 8, 0, 0, 250, tzinfo=timezone(timedelta(hours=1)))
    value = {"at": at, "lasts": timedelta(minutes=1.5), "id": UUID(int=1), "status": Status.FAILED, "many": (1, None)}
    assert document(value) == {
        "at": "2026-03-01T07:00:00.000250Z", "lasts": 90.0, "id": "00000000-0000-0000-0000-000000000001",
        "status": "FAILED", "many": [1, None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.4 ms"), (0.006, "6 ms"), (0.085, "85 ms"), (3.2, "3.2 s"), (30, "30 s"), (245, "4 min 5 s"),
     (3600, "1 h"), (7380, "2 h 3 min"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages_are_rough() -> None:
    now = datetime.now(UTC)
    assert ago(now - timedelta(seconds=245)) == "4 min ago"
    assert ago(now + timedelta(days=2, hours=5)) == "in 2 d"
    assert ago(None) is None
    assert (count(1, "job"), count(0, "job")) == ("1 job", "0 jobs")
    assert str(cell(None)) == "-"


class _Terminal:
    """A stdout that is a narrow terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass


def test_a_narrow_terminal_loses_columns_and_the_end_of_names_but_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    one = UUID(int=1)
    write_table(("ID", "KIND", "NAME"), [(one, "HEARTBEAT", "n" * 40)], empty="", cut="NAME", drop=("KIND",))
    head, row = terminal.written.splitlines()
    assert head.split() == ["ID", "NAME"]
    assert row == f"{one}  {'n' * 21}…"


def test_each_error_of_the_tree_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for mistake in (InvalidInput, Forbidden, NotFound, Conflict, Misconfigured):
        assert exit_code(mistake("no")) == 2
    assert exit_code(Unavailable("away")) == 3
    assert exit_code(JobQError("failed")) == 1
    assert tell(InvalidInput(f"{MOVES} is wrong.", hint="Mend\nit.", pointer="/spec", code="invalid_url")) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"jobq: {plain(MOVES)} is wrong, at /spec (invalid_url)."
    assert second == "      Mend\\nit."


@dataclass(frozen=True)
class _Size:
    width: Annotated[int | None, typer.Option(help="How wide.")] = None
    label: Annotated[list[str] | None, typer.Option()] = None


def test_spread_makes_options_of_a_dataclass() -> None:
    app = typer.Typer()

    @app.command()
    @spread
    def draw(name: Annotated[str, typer.Argument()], size: _Size) -> None:
        typer.echo(f"{name} {given(width=size.width, label=size.label)}")

    run = CliRunner().invoke
    assert run(app, ["box", "--width", "3", "--label", "a", "--label", "b"]).output == (
        "box {'width': 3, 'label': ['a', 'b']}\n"
    )
    assert run(app, ["box"]).output == "box {}\n"


def test_an_option_that_takes_json_names_the_file_that_it_cannot_read() -> None:
    assert read_json('{"a": 1}', "--spec") == {"a": 1}
    with pytest.raises(InvalidInput, match=r"--spec: the file '/nope' cannot be read"):
        read_json("@/nope", "--spec")
