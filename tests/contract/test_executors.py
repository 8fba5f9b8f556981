"""Every executor holds the contract that plugin authors get with jobq: the built-in ones, the example's, the least one."""

import importlib.util
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobq import Container, Context, Heartbeat, Kind, Outcome, Reason, Settings, Spec, Status
from jobq.settings import Policy
from jobq.testing import ExecutorContract, Ran, assert_recordable, run_executor
from tests import services
from workers.container.executor import ContainerExecutor
from workers.heartbeat import HeartbeatExecutor

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin-greeting" / "jobq_greeting.py"


class Nothing(Spec):
    """Nothing to say."""


class NothingExecutor:
    """The least that an executor can be."""

    kind = Kind("NOTHING", Nothing)

    def execute(self, _spec: Nothing, _ctx: Context) -> Outcome:
        return Outcome.succeeded()


class TestNothing(ExecutorContract):
    def executor(self) -> NothingExecutor:
        return NothingExecutor()

    def spec(self) -> Nothing:
        return Nothing()


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ok" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class TestHeartbeat(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _servers(self) -> Iterator[None]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server, socket.create_server(("127.0.0.1", 0)) as silent:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.pages = f"http://127.0.0.1:{server.server_port}"
            self.silent = f"http://127.0.0.1:{silent.getsockname()[1]}"
            yield
            server.shutdown()

    def executor(self) -> HeartbeatExecutor:
        return HeartbeatExecutor()

    def settings(self) -> Settings:
        return Settings(policy=Policy(probe_networks=["127.0.0.0/8"]))

    def spec(self) -> Heartbeat:
        return Heartbeat(endpoint=f"{self.pages}/ok")

    def endless_spec(self) -> Heartbeat:
        return Heartbeat(endpoint=self.silent)

    def failing_spec(self) -> Heartbeat:
        return Heartbeat(endpoint=f"{self.pages}/missing")


class TestContainer(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _engine(self, docker_engine: services.Docker) -> None:
        self.engine = docker_engine

    def executor(self) -> ContainerExecutor:
        return ContainerExecutor()

    def settings(self) -> Settings:
        return Settings(docker_host=self.engine.url)

    def _shell(self, script: str) -> Container:
        return Container(image=services.Docker.image, command=["sh", "-c", script])

    def spec(self) -> Container:
        return self._shell("echo hello")

    def endless_spec(self) -> Container:
        return self._shell("sleep 600")

    def failing_spec(self) -> Container:
        return self._shell("exit 3")

    def test_what_it_prints_is_the_log(self) -> None:
        assert "hello" in self._run(self.spec()).log

    def test_nothing_is_left_of_it(self) -> None:
        self._run(self.spec())
        assert self.engine.containers() == []


def _greeting() -> Any:
    spec = importlib.util.spec_from_file_location("jobq_greeting", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestGreeting(ExecutorContract):
    """The example's own test, run from here too."""

    plugin = _greeting()

    def executor(self) -> Any:
        return self.plugin.GreetingExecutor()

    def spec(self) -> Any:
        return self.plugin.Greeting(name="Ada")

    def endless_spec(self) -> Any:
        return self.plugin.Greeting(name="Ada", times=1_000_000, pause=0.05)

    def failing_spec(self) -> Any:
        return self.plugin.Greeting(name="nobody")


# --- the contract itself ---------------------------------------------------------------------------------------------


class Wrong:
    """Executors that break the contract, each in one way."""

    class ReturnsNothing(NothingExecutor):
        def execute(self, _spec: Nothing, _ctx: Context) -> Any:
            return None

    class LogsAnywhere(NothingExecutor):
        def execute(self, _spec: Nothing, ctx: Context) -> Outcome:
            ctx.log("hello", "nowhere")
            return Outcome.succeeded()

    class StepsBackwards(NothingExecutor):
        def execute(self, _spec: Nothing, ctx: Context) -> Outcome:
            ctx.add_step("backwards", 2.0, 1.0)
            return Outcome.succeeded()

    class ReturnsNoJson(NothingExecutor):
        def execute(self, _spec: Nothing, _ctx: Context) -> Outcome:
            return Outcome.succeeded({"value": float("nan")})


@pytest.mark.parametrize("executor", [Wrong.ReturnsNothing, Wrong.StepsBackwards, Wrong.ReturnsNoJson])
def test_the_contract_refuses_what_a_worker_could_not_record(executor: type) -> None:
    ran = run_executor(executor(), Nothing())
    with pytest.raises((AssertionError, ValueError)):
        assert_recordable(ran)


def test_a_log_goes_to_a_stream_that_there_is() -> None:
    assert run_executor(Wrong.LogsAnywhere(), Nothing()).outcome.reason is Reason.INVALID


def test_what_an_executor_raises_is_the_failure_that_a_worker_would_record() -> None:
    class Raises(NothingExecutor):
        def execute(self, _spec: Nothing, _ctx: Context) -> Outcome:
            raise LookupError("no such thing")

    outcome = run_executor(Raises(), Nothing()).outcome

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "LookupError")
    assert outcome.message == "LookupError: no such thing"


def test_lines_of_different_streams_do_not_mix() -> None:
    class Speaks(NothingExecutor):
        async def execute(self, _spec: Nothing, ctx: Context) -> Outcome:
            ctx.log(b"one ", "stdout")
            ctx.log("beside\n", "stderr")
            ctx.log(b"line\nand a \xff", "stdout")
            ctx.save({"at": 1})
            return Outcome.succeeded()

    ran: Ran = run_executor(Speaks(), Nothing())

    assert ran.log == ["beside", "one line", "and a \\xff"]
    assert ran.saved == {"at": 1}
