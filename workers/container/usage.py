"""What a running container used so far, read from its control group: two small files, no call to the engine.

The group is gone once the container has ended, so the figures are those of the last look: never too high, and
none at all for a container that was over before the first one, or whose engine runs on another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROOT = Path("/sys/fs/cgroup")


class Usage:
    """The highest memory and the CPU time seen of one container."""

    def __init__(self, container_id: str, root: Path = _ROOT) -> None:
        self._folders = [f"docker/{container_id}", f"system.slice/docker-{container_id}.scope"]
        self._root = root
        self._memory: Path | None = None
        self._cpu: Path | None = None
        self.memory_bytes = 0
        self.cpu_seconds = 0.0

    def look(self) -> None:
        """Read the figures now; keep the old ones where there is nothing to read (any more)."""
        if self._memory is None:
            self._find()
        if self._memory is not None:
            self.memory_bytes = max(self.memory_bytes, int(_read(self._memory) or 0))
        if self._cpu is not None:
            self.cpu_seconds = max(self.cpu_seconds, self._cpu_time(_read(self._cpu)))

    def _cpu_time(self, text: str) -> float:
        if text.startswith("usage_usec"):  # version 2: lines of name and number
            return int(text.split(None, 2)[1]) / 1e6
        return int(text or 0) / 1e9

    def _find(self) -> None:
        for folder in self._folders:
            # Version 2; memory.peak came with Linux 5.19, memory.current is the next best thing.
            if (group := self._root / folder).is_dir():
                peak = group / "memory.peak"
                self._memory = peak if peak.exists() else group / "memory.current"
                self._cpu = group / "cpu.stat"
            elif (group := self._root / "memory" / folder).is_dir():  # version 1
                self._memory = group / "memory.max_usage_in_bytes"
                self._cpu = self._root / "cpuacct" / folder / "cpuacct.usage"

    def figures(self) -> dict[str, Any]:
        """For the outcome; empty: unknown."""
        if not self.memory_bytes:
            return {}
        return {"memory_bytes": self.memory_bytes, "cpu_seconds": round(self.cpu_seconds, 3)}


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # the container has ended
        return ""
