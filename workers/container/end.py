"""What the end of a container means for its job. Pure: from what the engine said to an Outcome."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from jobq.models import Outcome
from jobq.specs import Container
from jobq.states import Reason

_SIGKILL, _SIGTERM = 137, 143
_BY_THE_ENGINE = {_SIGKILL, _SIGTERM, 255}
"""What an engine leaves behind that ended its containers with itself."""

_CAUSES = {
    125: "the container's init process failed",
    126: "the command was found in the image but cannot be executed; check its permissions and its format",
    127: "the command was not found in the image; check the command and the entrypoint",
    _SIGKILL: "killed by SIGKILL, which jobq did not send: by somebody else, or because the host ran out of memory",
    139: "segmentation fault (SIGSEGV)",
    _SIGTERM: "ended by SIGTERM, which jobq did not send: the process itself or somebody on the host did",
}


class Why(StrEnum):
    """Why jobq itself stopped a container: exit codes do not tell, so it is remembered."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended, in the engine's words."""

    code: int | None
    """None: the container is gone, and its exit code with it."""
    out_of_memory: bool = False
    seconds: float = 0.0
    """How long it ran; 0: not asked."""
    stop_signal: str = "SIGTERM"
    engine_lost: bool = False
    """True if the engine went away while the container ran: it may have ended the container with itself."""

    @classmethod
    def of(cls, inspected: Mapping[str, Any], *, engine_lost: bool) -> Ended:
        """From the engine's description of a container that does not run any more."""
        state = inspected["State"]
        return cls(
            code=state["ExitCode"],
            out_of_memory=state["OOMKilled"],
            seconds=max(0.0, (instant(state["FinishedAt"]) - instant(state["StartedAt"])).total_seconds()),
            stop_signal=_signal_name(inspected["Config"].get("StopSignal") or "SIGTERM"),
            engine_lost=engine_lost,
        )


def instant(text: str) -> datetime:
    """An instant of the engine: RFC 3339 with nanoseconds, which are cut to microseconds."""
    return datetime.fromisoformat(text)


def outcome(
    ended: Ended, spec: Container, *, why: Why | None, timeout: float | None, grace: float, **more: Any
) -> Outcome:
    """The outcome of an attempt whose container has ended; ``why``: jobq stopped it; ``more``: usage, result."""
    overdue = timeout is not None and ended.seconds >= timeout and ended.code in _BY_THE_ENGINE
    if why is Why.TIMEOUT or (why is None and overdue):
        return Outcome.timed_out(_timed_out(ended, timeout or 0, grace), exit_code=ended.code, **more)
    if why is not None:
        return Outcome.stopped(_stopped(ended, why), exit_code=ended.code, **more)
    if ended.code is None:
        return Outcome.lost(
            "the container was removed by somebody else while it ran: nobody can say how it ended", **more
        )
    if ended.code == 0:  # whatever the kernel killed on the way
        return Outcome.succeeded(more.pop("result", None), exit_code=0, **more)
    if ended.engine_lost and ended.code in _BY_THE_ENGINE:
        return Outcome.lost(
            f"the Docker engine went away while the container ran, and took it along (exit {ended.code})",
            exit_code=ended.code, **more,
        )  # fmt: skip
    return _failed(ended, spec, **more)


def _failed(ended: Ended, spec: Container, **more: Any) -> Outcome:
    code = ended.code or 0
    if ended.out_of_memory and code == _SIGKILL:
        message = f"exit {code}: the memory limit of {size(spec.memory)} was reached"
        return Outcome.failed(message, error_class="out_of_memory", reason=Reason.OUT_OF_MEMORY, exit_code=code, **more)
    hint = f"; a process in it was killed at the memory limit of {size(spec.memory)}" if ended.out_of_memory else ""
    cause = _CAUSES.get(code) or _by_signal(code)
    return Outcome.failed(
        f"exit {code}{f': {cause}' if cause else ''}{hint}", error_class=f"exit_{code}", reason=Reason.NONZERO_EXIT,
        exit_code=code, retry=code not in {126, 127}, **more,
    )  # fmt: skip


def _timed_out(ended: Ended, timeout: float, grace: float) -> str:
    if ended.code == _SIGKILL:
        end = f"the process ignored {ended.stop_signal} and was killed {grace:g} s later"
    else:
        end = f"the process ended on {ended.stop_signal}"
    return f"timed out after {timeout:g} s; {end}"


def _stopped(ended: Ended, why: Why) -> str:
    if why is Why.FENCED:
        return "stopped: this worker does not own the job any more"
    if ended.code == _SIGKILL:
        return f"canceled; the process ignored {ended.stop_signal} and was killed"
    return f"canceled; the process ended on {ended.stop_signal}"


def _by_signal(code: int) -> str:
    try:
        return f"killed by {signal.Signals(code - 128).name}" if code > 128 else ""
    except ValueError:
        return ""


def _signal_name(text: str) -> str:
    """SIGTERM from what an image may say: SIGTERM, TERM or 15."""
    if text.isdecimal():
        try:
            return signal.Signals(int(text)).name
        except ValueError:
            return f"signal {text}"
    return text if text.startswith("SIG") else f"SIG{text}"


def size(count: int) -> str:
    """Bytes for a person; the powers of 1024 that specs are written in."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} bytes"
