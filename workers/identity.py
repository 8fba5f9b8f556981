"""Who this worker is: a process that cannot be mistaken for another, on any host or in any container."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from jobq.store.jobs import new_id
from jobq.store.workers import Identity

_START_TIME_FIELD = 19  # field 22 of /proc/<pid>/stat, counted behind the command's closing bracket


def boot_id() -> str:
    """Identifies one boot of the machine."""
    return _read("/proc/sys/kernel/random/boot_id")


def pid_namespace() -> str:
    """Identifies the process table that this process is in: containers have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since the boot; None: there is no such process (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[_START_TIME_FIELD]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def new_identity(queues: Mapping[str, int], host: str | None) -> Identity:
    """A new identity for this process: a new one at each start, and after each death it was told of."""
    pid = os.getpid()
    return Identity(
        id=new_id(), name=f"{socket.gethostname()}:{pid}", hostname=socket.gethostname(), pid=pid, boot_id=boot_id(),
        pid_namespace=pid_namespace(), process_start=process_start(pid) or "", version=version("jobq"),
        queues=dict(queues), host=host,
    )  # fmt: skip
