"""Throwaway real servers for tests and benchmarks: PostgreSQL, Redis, RabbitMQ, dockerd.

Each runs on a port and in a folder of its own, beside whatever the machine runs already, and ends with the
process that started it, however that ends. Run as a module, it names the programs that this machine lacks.
"""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")

# --- programs --------------------------------------------------------------------------------------------------------

# Program -> the Debian or Ubuntu packages that bring it.
PACKAGES = {
    "make": "make",
    "git": "git",
    "initdb": "postgresql",
    "redis-server": "redis-server",
    "rabbitmq-server": "rabbitmq-server",
    "dockerd": "docker.io iptables",
    "busybox": "busybox-static",
    "docker-compose": "docker-compose",
    "faketime": "faketime",
    "ip": "iproute2",
}
# Debian keeps servers off an ordinary user's PATH.
FOLDERS = ["/usr/sbin", "/sbin", "/usr/lib/rabbitmq/bin"]


def find(program: str) -> str | None:
    """Return the program's path, or None; of several PostgreSQL versions the newest."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    path = os.pathsep.join([*map(str, reversed(versions)), os.environ.get("PATH", ""), *FOLDERS])
    return shutil.which(program, path=path)


def missing(*programs: str) -> str:
    """Say in one line which of the programs are not here and how to install them; empty if all are."""
    absent = [program for program in programs if find(program) is None]
    packages = " ".join(dict.fromkeys(PACKAGES[program] for program in absent))
    return f"not installed: {', '.join(absent)} (sudo apt-get install -y {packages})" if absent else ""


def require(*programs: str) -> None:
    """Skip the test that lacks a program. Where CI is set it fails instead: there, a skip would hide the loss."""
    if reason := missing(*programs):
        unavailable(reason)


def require_root(what: str) -> None:
    """The same for a test that only root can run."""
    if os.geteuid() != 0:
        unavailable(f"{what} needs root: sudo make test")


def unavailable(reason: str) -> None:
    """Skip the running test for this reason, or fail it where CI is set."""
    import pytest

    (pytest.fail if os.environ.get("CI", "") not in ("", "0", "false") else pytest.skip)(reason)


# --- waiting ---------------------------------------------------------------------------------------------------------


def wait_until(predicate: Callable[[], T], timeout: float = 10, interval: float = 0.02, what: str = "") -> T:
    """Return the predicate's first true value. This is the only waiting in the tests.

    Raises:
        TimeoutError: it stayed false for `timeout` seconds (in CI, whose machines are busy, for twice as long); the
            message says what was waited for.
    """
    timeout *= 2 if os.environ.get("CI", "") not in ("", "0", "false") else 1
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what or predicate}; the last answer was {value!r}")
        time.sleep(interval)
    return value


def free_port() -> int:
    """Return a port that nothing listens on, below the range that outgoing connections take.

    A server that a test stops can therefore come back on its port: no client has slipped in.
    """
    while True:
        port = random.randint(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


# --- processes -------------------------------------------------------------------------------------------------------

# The kernel sends a parent-death signal when the *thread* that forked ends. This one lives as long as the process,
# so a server may be restarted from a test's short-lived thread.
_forks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="services")


def child(command: Sequence[str | Path], *, user: str | None = None, **how: Any) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when this one dies, in any way; ``how``: as Popen takes it.

    It stands apart: in a session of its own, without standard input. ``user`` matters to root only.
    """
    command = ["setpriv", "--pdeathsig", "KILL", *_as_user(user), "--", *command]
    apart = {"stdin": subprocess.DEVNULL, "start_new_session": True}
    return _forks.submit(lambda: subprocess.Popen(command, **{**apart, **how})).result()


def spawn(
    command: list[str],
    *,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server, as a child of this process: in this environment and ``env``; what it prints goes to the log."""
    with (log or Path(os.devnull)).open("ab") as output:
        return child(command, user=user, env={**os.environ, **(env or {})}, cwd="/", stdout=output, stderr=output)


def _as_user(user: str | None) -> list[str]:
    return [f"--reuid={user}", f"--regid={user}", "--init-groups"] if user and os.geteuid() == 0 else []


def descendants(pid: int) -> Iterator[int]:
    """Yield the process and everything below it, parents first."""
    yield pid
    try:
        children = [
            child for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()
        ]
    except OSError:  # it ended meanwhile
        return
    for child in children:
        yield from descendants(int(child))


def running(pid: int) -> bool:
    """Whether the process lives; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Server:
    """One server process with a folder, a port and a log; subclasses say how to start it and when it answers."""

    programs: ClassVar[tuple[str, ...]]
    user: ClassVar[str | None] = None
    patience: ClassVar[float] = 30

    def __init__(self) -> None:
        # Short and world-traversable: the path of a Unix socket has 107 bytes, and servers leave root behind.
        self.folder = Path(tempfile.mkdtemp(prefix="jobq-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.log = self.folder / "log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def prepare(self) -> None:
        """Make, once, what the first start needs."""

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it where it is down (same port, same data) and wait until it answers; thaw it where it is frozen."""
        if self.alive:
            self.thaw()
        else:
            self.process = spawn(self.command(), user=self.user, env=self.environment(), log=self.log)

        def up() -> bool:
            if not self.alive:
                raise RuntimeError(f"{self.command()[0]} ended at once:\n{self.log.read_text()[-2000:]}")
            return self.answers()

        wait_until(up, self.patience, what=f"{type(self).__name__} on port {self.port} (log: {self.log})")

    def signal(self, number: signal.Signals) -> list[int]:
        """Send it to the server and its children, parents first; return who got it."""
        processes = []
        if self.process and self.alive:
            for pid in descendants(self.process.pid):
                _send(pid, number)
                processes.append(pid)
        return processes

    def stop(self) -> None:
        """End it in good order and wait."""
        self.thaw()
        if self.process and self.alive:
            self.process.terminate()
            self.process.wait(self.patience)

    def kill(self) -> None:
        """End it as a crash would: SIGKILL to the server and its children. None is left when this returns."""
        # Frozen, none has another child while its children are counted.
        processes = self.signal(signal.SIGSTOP)
        for pid in processes:
            _send(pid, signal.SIGKILL)
        if self.process:
            self.process.wait(self.patience)
        wait_until(lambda: not any(map(running, processes)), self.patience, what=f"the end of {processes}")

    def freeze(self) -> None:
        """Stop it from answering while its connections stay open."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it for good and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, question: bytes) -> bytes:
        """Send bytes to its port and return the first answer; empty while nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(question)
                return connection.recv(4096)
        except OSError:
            return b""


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it was quicker


# --- the servers -----------------------------------------------------------------------------------------------------


class Redis(Server):
    """An empty Redis that never writes to disk and refuses writes, rather than evicts, when full."""

    programs = ("redis-server",)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = (
            f"--port {self.port} --bind 127.0.0.1 --dir {self.folder} --appendonly no --maxmemory-policy noeviction"
        )
        return [str(find("redis-server")), *options.split(), "--save", ""]

    def answers(self) -> bool:
        return self.ask(b"PING\r\n").startswith(b"+PONG")

    def flush(self) -> None:
        """Remove every key of every database and undo CONFIG SET maxmemory."""
        self.ask(b"CONFIG SET maxmemory 0\r\nFLUSHALL\r\n")


class Postgres(Server):
    """A PostgreSQL cluster with trust authentication; databases are copies of templates."""

    programs = ("initdb",)
    user = "postgres"

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, self.user)
        options = f"-D {self.folder}/data -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync"
        initdb = ["setpriv", *_as_user(self.user), "--", str(find("initdb")), *options.split()]
        subprocess.run(initdb, check=True, cwd="/", capture_output=True)

    def command(self) -> list[str]:
        # Without fsync a test survives a crash of the server, not of the machine. JOBQ_TEST_FSYNC=on for the real thing.
        fsync = os.environ.get("JOBQ_TEST_FSYNC", "off")
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": fsync,
            "full_page_writes": fsync,
            "dynamic_shared_memory_type": "mmap",  # in the folder: a killed server leaves nothing elsewhere
            "max_connections": 200,
            "shared_buffers": "64MB",
        }
        options = [option for key, value in settings.items() for option in ("-c", f"{key}={value}")]
        return [str(find("postgres")), "-D", f"{self.folder}/data", "-p", str(self.port), *options]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it in good order: connections are cut (fast shutdown), nothing is lost."""
        self.thaw()
        if self.process and self.alive:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(self.patience)

    def crash(self) -> None:
        """End it at once (immediate shutdown): nothing is written any more, and the next start recovers from the log.

        Unlike ``kill``, it leaves no shared memory behind.
        """
        self.thaw()
        if self.process and self.alive:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(self.patience)

    def close(self) -> None:
        """End it at once, but by its own hand."""
        self.crash()
        super().close()

    def execute(self, statement: str, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, template: str = "template1") -> str:
        """Create a database that equals the template and return its name."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        """Drop the database under whoever is still connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def disconnect(self, name: str) -> None:
        """Terminate every connection to the database."""
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


class RabbitMQ(Server):
    """A RabbitMQ node without plugins, with an epmd of its own; a virtual host separates one test from the next."""

    programs = ("rabbitmq-server",)
    user = "rabbitmq"
    patience = 60

    def __init__(self) -> None:
        super().__init__()
        self.epmd_port = free_port()
        self.epmd: subprocess.Popen[bytes] | None = None

    def url(self, vhost: str = "%2F") -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def prepare(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, self.user)
        (self.folder / "plugins").write_text("[].")
        (self.folder / "rabbitmq.conf").write_text("log.console = true\ndisk_free_limit.absolute = 50MB\n")
        # RabbitMQ would start a daemon that outlives it; one of ours on that port makes it find one.
        self.epmd = spawn(["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"], user=self.user)

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),  # the cookie that rabbitmqctl needs is made here
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the server: no shell between us and it
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "jobq@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.epmd_port + 1),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # Spinning schedulers would take the cores from the test.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def command(self) -> list[str]:
        return ["/usr/lib/rabbitmq/bin/rabbitmq-server"]

    def answers(self) -> bool:
        # A real protocol header: the listener opens before the node serves.
        return self.ask(b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it printed."""
        rabbitmqctl = "/usr/lib/rabbitmq/bin/rabbitmqctl"
        command = ["setpriv", *_as_user(self.user), "--", rabbitmqctl, "-q", *arguments]
        environment = {**os.environ, **self.environment()}
        done = subprocess.run(command, check=True, env=environment, cwd="/", capture_output=True, text=True)
        return done.stdout

    def create(self) -> str:
        """Create an empty virtual host and return its name."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.control(
            "eval",
            f'rabbit_vhost:add(<<"{name}">>, <<"test">>),'
            f' rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>,'
            f' <<".*">>, <<".*">>, <<".*">>, <<"test">>).',
        )
        return name

    def close(self) -> None:
        super().close()
        if self.epmd:
            self.epmd.kill()
            self.epmd.wait()


class Docker(Server):
    """A Docker engine of its own, in a process and mount namespace that takes every container with it.

    Its containers run with network `none` or `host` only. `jobq-test:busybox` is imported into it.
    """

    programs = ("dockerd", "busybox")
    image = "jobq-test:busybox"

    def __init__(self) -> None:
        super().__init__()
        self.namespace: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def prepare(self) -> None:
        # dockerd lives inside, as a child of this init: killing it leaves containerd, shims and containers running,
        # as on a real host, and the end of the namespace ends them all and undoes their mounts.
        reaper = [init, "--"] if (init := find("docker-init") or find("tini")) else []
        inside = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child=KILL"]
        self.namespace = spawn([*inside, *reaper, "sleep", "infinity"], log=self.log)
        namespace = self.namespace.pid
        self.init = wait_until(lambda: list(descendants(namespace))[1:], what="the namespace's init")[0]
        # Inside only once its root is private: unshare mounts /proc just before it starts the init.
        wait_until(lambda: b"unshare" not in Path(f"/proc/{self.init}/cmdline").read_bytes(), what="the namespace")

    def command(self) -> list[str]:
        return [
            *("nsenter", "--target", str(self.init), "--pid", "--mount"),
            *(str(find("dockerd")), "--host", self.url, "--data-root", f"{self.folder}/data"),
            *("--exec-root", f"{self.folder}/exec", "--pidfile", f"{self.folder}/pid"),
            *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
        ]

    def answers(self) -> bool:
        try:
            return self.request("GET", "/_ping")[1] == b"OK"
        except OSError:
            return False

    def start(self) -> None:
        if not self.alive:
            # A killed engine leaves these behind. The next would refuse to start, or, where another process has its
            # containerd's number by now, wait for that in vain.
            (self.folder / "pid").unlink(missing_ok=True)
            (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)
        super().start()
        if self.request("GET", f"/images/{self.image}/json")[0] == http.client.NOT_FOUND:
            self.request("POST", "/images/create?fromSrc=-&repo=jobq-test&tag=busybox", busybox_image())

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask the engine and return status and body."""
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        try:
            connection.sock.connect(f"{self.folder}/docker.sock")
            kind = "application/x-tar" if path.startswith("/images") else "application/json"
            connection.request(method, path, body, {"Content-Type": kind})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def containers(self) -> list[str]:
        """Return the ids of all containers, whatever their state."""
        return [container["Id"] for container in json.loads(self.request("GET", "/containers/json?all=1")[1])]

    def host_pid(self, container: str) -> int:
        """Return the pid, as this process sees it, of a running container's first process."""
        inside = json.loads(self.request("GET", f"/containers/{container}/json")[1])["State"]["Pid"]
        # The kernel lists a process's pid in each namespace that it is in, outermost first.
        line = re.compile(rf"^NSpid:\t\d+\t{inside}\b", re.MULTILINE)
        return next(pid for pid in descendants(self.init) if line.search(Path(f"/proc/{pid}/status").read_text()))

    def clear(self) -> None:
        """Remove every container."""
        for container in self.containers():
            self.request("DELETE", f"/containers/{container}?force=1")

    def stop(self) -> None:
        """End the engine in good order: it stops its containers first."""
        self.thaw()
        if self.process and self.alive:
            _nsenter, dockerd, *_containerd = descendants(self.process.pid)
            _send(dockerd, signal.SIGTERM)
            self.process.wait(self.patience)

    def close(self) -> None:
        if self.alive:
            self.thaw()
            self.clear()  # by its own hand, so that no control group stays behind
            self.stop()
        if self.namespace:
            self.namespace.kill()
            self.namespace.wait()
        super().close()


def busybox_image() -> bytes:
    """Return the tar of a root file system: a static busybox and a link for each of its commands."""
    busybox = Path(str(find("busybox")))
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(busybox.resolve(), "bin/busybox")
        for applet in set(applets) - {"busybox"}:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return buffer.getvalue()


if __name__ == "__main__":
    for program in PACKAGES:
        if line := missing(program):
            sys.stdout.write(f"{line}: its tests are skipped\n")
