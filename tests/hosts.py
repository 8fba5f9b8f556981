"""Machines that can be cut off from each other: network and process namespaces, joined by links that go down and up."""

import http.client
import json
import os
import socket
import subprocess
import threading
import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests import services


def ip(*arguments: str, inside: str = "") -> None:
    place = ["-n", inside] if inside else []
    subprocess.run([str(services.find("ip")), *place, *arguments], check=True, capture_output=True)


class Hub(services.Postgres):
    """A machine with PostgreSQL and Redis, to which hosts are joined; this process reaches PostgreSQL by its socket."""

    def __init__(self) -> None:
        super().__init__()
        self.name = f"jobq-{uuid.uuid4().hex[:6]}"
        self.redis_port = services.free_port()
        self.redis: subprocess.Popen[bytes] | None = None
        self.hosts: list[Host] = []

    @property
    def inside(self) -> list[str]:
        """What a command begins with that runs on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def prepare(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "set", "lo", "up", inside=self.name)
        super().prepare()
        self.user = None  # it takes root to enter the namespace; the server becomes postgres inside
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 trust\n")

    def command(self) -> list[str]:
        options = super().command()
        options[options.index("listen_addresses=127.0.0.1")] = "listen_addresses=*"
        return [*self.inside, "setpriv", "--pdeathsig", "KILL", *services._as_user("postgres"), "--", *options]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def start(self) -> None:
        super().start()
        if self.redis is None:
            redis = [str(services.find("redis-server")), "--port", str(self.redis_port), "--bind", "0.0.0.0"]
            options = ["--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
            self.redis = services.spawn([*self.inside, *redis, *options], log=self.log)

    def host(self, docker: services.Docker) -> "Host":
        """Another machine with a Docker engine, joined to this one."""
        number = len(self.hosts) + 1
        host = Host(self, docker, f"{self.name}-{number}", f"{self.name[-6:]}-{number}", f"10.77.{number}")
        self.hosts.append(host)
        ip("netns", "add", host.name)
        ip("link", "add", host.link, "netns", self.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        for place, device, last in ((self.name, host.link, 1), (host.name, "eth0", 2)):
            ip("addr", "add", f"{host.subnet}.{last}/30", "dev", device, inside=place)
            ip("link", "set", device, "up", inside=place)
        ip("link", "set", "lo", "up", inside=host.name)
        return host

    def close(self) -> None:
        if self.redis:
            self.redis.kill()
            self.redis.wait()
        super().close()
        for name in [host.name for host in self.hosts] + [self.name]:
            if Path(f"/run/netns/{name}").exists():
                ip("netns", "del", name)


@dataclass
class Host:
    """One machine: its own network, its own processes, its own Docker engine."""

    hub: Hub
    docker: services.Docker
    name: str
    link: str
    subnet: str

    def inside(self, database: str) -> list[str]:
        """What a command begins with that runs on this machine: it sees no process of another."""
        hub = f"{self.subnet}.1"
        settings = [
            f"JOBQ_DATABASE_URL=postgresql://postgres@{hub}:{self.hub.port}/{database}",
            f"JOBQ_BROKER_URL=redis://{hub}:{self.hub.redis_port}/0",
            f"JOBQ_DOCKER_HOST={self.docker.url}",
        ]
        apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"]
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *apart, "env", *settings]

    def cut(self) -> None:
        """Nothing passes to or from this machine any more; nobody is told."""
        ip("link", "set", self.link, "down", inside=self.hub.name)

    def heal(self) -> None:
        ip("link", "set", self.link, "up", inside=self.hub.name)


@dataclass
class Watch:
    """When containers of each job began and ended on some engines, from the engines' own events; in seconds."""

    dockers: list[services.Docker]
    began: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, float] = field(default_factory=dict)
    job_of: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._sockets: list[socket.socket] = []
        self._readers: list[threading.Thread] = []
        for docker in self.dockers:
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(f"{docker.folder}/docker.sock")
            self._sockets.append(connection.sock)
            wanted = json.dumps({"type": ["container"], "event": ["start", "die"]})
            connection.request("GET", f"/events?filters={wanted}".replace(" ", "").replace('"', "%22"))
            reader = threading.Thread(target=self._read, args=(connection.getresponse(),), daemon=True)
            self._readers.append(reader)
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for its in self._sockets:
            its.shutdown(socket.SHUT_RDWR)
        for reader in self._readers:
            reader.join(10)
        for its in self._sockets:
            its.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        with answer, suppress(OSError, ValueError, http.client.HTTPException):  # until it is closed
            for line in answer:
                self._note(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        job = event["Actor"]["Attributes"].get("jobq.job")
        if job and event["Action"] == "start":
            self.began[job].append((event["timeNano"] / 1e9, event["Actor"]["ID"]))
        elif job:
            self.ended[event["Actor"]["ID"]] = event["timeNano"] / 1e9

    def overlap(self) -> float:
        """The longest time for which two containers of one job ran at once."""
        longest = 0.0
        for runs in self.began.values():
            for (_, before), (begin, _) in zip(sorted(runs), sorted(runs)[1:], strict=False):
                longest = max(longest, self.ended.get(before, float("inf")) - begin)
        return round(longest, 2)


def beats_overlap(folder: Path) -> float:
    """The longest time for which two attempts of one BEAT ran at once; see ``tests.beats``."""
    spans: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for file in folder.glob("*.beats"):
        job, attempt, _ = file.name.split(".", 2)
        times = [float(line) for line in file.read_text().split()]
        spans[job][int(attempt)] = (times[0], times[-1])
    overlaps = [
        before[1] - after[0]
        for attempts in spans.values()
        for (_, before), (_, after) in zip(sorted(attempts.items()), sorted(attempts.items())[1:], strict=False)
    ]
    return round(max([0.0, *overlaps]), 2)


def root_with(*programs: str) -> None:
    """Skip (or in CI fail) where these machines cannot be made."""
    services.require(*programs)
    services.require_root("a network namespace")
    if not os.access("/run/netns", os.W_OK) and not os.access("/run", os.W_OK):
        services.unavailable("no network namespaces here: /run cannot be written")
