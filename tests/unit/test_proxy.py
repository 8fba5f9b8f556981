"""The fault proxy does to connections what it says: tests of faults are worth what it is worth."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy import Proxy
from tests.services import wait_until


class Echo:
    """A server that sends everything back, in capitals; ``heard`` is all that reached it."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.heard = b""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.heard += data
                    connection.sendall(data.upper())
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Echo(listener)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.listener.getsockname()) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    assert not isinstance(proxy.address, Path)
    return socket.create_connection(proxy.address, timeout=5)


def ask(connection: socket.socket, question: bytes) -> bytes:
    connection.sendall(question)
    return connection.recv(65536)


def connect_and_ask(proxy: Proxy) -> None:
    """The reset may be met at any of the three steps."""
    with connect(proxy) as connection:
        ask(connection, b"b")
        connection.recv(1)


def test_it_passes_everything_on_and_ends_when_either_end_does(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        assert ask(connection, b"hello") == b"HELLO"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""
    wait_until(lambda: proxy.open == 0)
    assert proxy.accepted == 1


def test_frozen_connections_and_new_ones_stay_open_and_say_nothing_until_it_is_healed(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        proxy.freeze()
        with connect(proxy) as new:
            for connection in (old, new):
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    ask(connection, b"b")
            assert echo.heard == b"a"
            proxy.heal()
            for connection in (old, new):
                connection.settimeout(5)
                assert connection.recv(10) == b"B"


def test_a_reset_ends_what_is_open_and_whatever_comes_until_it_is_healed(proxy: Proxy) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            old.recv(10)
    with pytest.raises(ConnectionError):
        connect_and_ask(proxy)
    proxy.heal()
    with connect(proxy) as new:
        assert ask(new, b"c") == b"C"


def test_a_frozen_connection_can_be_cut_and_new_ones_live(proxy: Proxy) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        proxy.freeze()
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            old.recv(10)
    proxy.heal()
    with connect(proxy) as new:
        assert ask(new, b"c") == b"C"


def test_silenced_connections_say_nothing_ever_and_new_ones_live(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        assert proxy.silence() == 1
        proxy.heal()
        old.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(old, b"b")
        with connect(proxy) as new:
            assert ask(new, b"c") == b"C"
    assert echo.heard == b"ac"


def test_slowness_is_latency_and_bandwidth(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.slow(0.1)
        began = time.monotonic()
        assert ask(connection, b"a") == b"A"
        assert time.monotonic() - began >= 0.2
        proxy.slow(0, bandwidth=100_000)
        began = time.monotonic()
        connection.sendall(b"b" * 50_000)
        received = 0
        while received < 50_000:
            received += len(connection.recv(65536))
        assert time.monotonic() - began >= 0.4


def test_a_request_whose_reply_is_lost_has_reached_the_server(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        proxy.lose_reply(b"COMMIT")
        assert ask(connection, b"select") == b"SELECT"
        connection.sendall(b"COM")
        assert connection.recv(10) == b"COM"
        with pytest.raises(ConnectionResetError):
            ask(connection, b"MIT")
    assert echo.heard.endswith(b"COMMIT")
    assert proxy.lost == 1
    with connect(proxy) as connection:
        assert ask(connection, b"COMMIT") == b"COMMIT"


def test_nobody_upstream_is_a_reset(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with Proxy(address) as proxy, pytest.raises(ConnectionError):
        connect_and_ask(proxy)


def test_it_stands_between_unix_sockets_too(tmp_path: Path) -> None:
    upstream, listen = tmp_path / "up.sock", tmp_path / "down.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upstream))
        listener.listen()
        Echo(listener)
        with Proxy(upstream, listen=listen) as proxy, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(listen))
            assert ask(connection, b"a") == b"A"
            proxy.reset()
            assert connection.recv(10) == b""
        listener.shutdown(socket.SHUT_RDWR)


def test_a_url_leads_through_it_and_keeps_all_else(proxy: Proxy) -> None:
    through = proxy.url("postgresql://postgres@127.0.0.1:5432/name?sslmode=disable")
    assert through == f"postgresql://postgres@127.0.0.1:{proxy.port}/name?sslmode=disable"


def test_it_ends_quietly_under_open_connections(echo: Echo, capfd: pytest.CaptureFixture[str]) -> None:
    with Proxy(echo.listener.getsockname()) as proxy:
        passed, frozen = connect(proxy), connect(proxy)
        assert ask(passed, b"a") == b"A"
        proxy.freeze()
    with passed, frozen, pytest.raises(ConnectionResetError):
        passed.recv(1)
    assert capfd.readouterr().err == ""
