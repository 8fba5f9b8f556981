"""Wrong clocks, by libfaketime: of a process from its start on, or of a server whose clock jumps while it runs.

Only clocks that show the time of day are wrong; those that measure durations (CLOCK_MONOTONIC) are not, as after a
clock was set by hand or by a time server.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.services import Postgres, descendants


def wrong(clock: str) -> dict[str, str]:
    """The environment of a process whose clock is so wrong: "+3600", "-3600", "+0 x2" (at double speed)."""
    return {**_preloaded(), "FAKETIME": clock}


def forget(*pids: int) -> None:
    """Remove what the library leaves in shared memory when a process of these is killed."""
    for pid in pids:
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)


def _preloaded() -> dict[str, str]:
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return {"LD_PRELOAD": str(library), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class OddlyTimed(Postgres):
    """A PostgreSQL whose clock goes as a test says: all its processes read it from one file."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = self.folder / "clock"
        self._ahead: Callable[[], float] = lambda: 0.0
        self._ending = threading.Event()
        self._setting = threading.Thread(target=self._set, daemon=True)

    def __enter__(self) -> Self:
        self._write()
        super().__enter__()
        self._setting.start()
        return self

    def close(self) -> None:
        self._ending.set()
        own = list(descendants(self.process.pid)) if self.process else []
        super().close()
        forget(*own)

    def command(self) -> list[str]:
        # Not before the program itself, which is another user's: what the library makes belongs to who loads it first.
        clock = {**_preloaded(), "FAKETIME_TIMESTAMP_FILE": str(self._clock), "FAKETIME_NO_CACHE": "1"}
        return ["env", *(f"{name}={value}" for name, value in clock.items()), *super().command()]

    def jump(self, seconds: float) -> None:
        """Set it so far ahead of the right time; below zero: behind it."""
        self._ahead = lambda: seconds
        self._write()

    def speed(self, factor: float) -> None:
        """From now on it goes so many times as fast, from where it is."""
        began, ahead = time.monotonic(), self._ahead()
        self._ahead = lambda: ahead + (factor - 1) * (time.monotonic() - began)

    def _set(self) -> None:
        while not self._ending.wait(0.1):
            self._write()

    def _write(self) -> None:
        new = self._clock.with_suffix(".new")
        new.write_text(f"{self._ahead():+.3f}")
        new.chmod(0o644)
        new.rename(self._clock)
