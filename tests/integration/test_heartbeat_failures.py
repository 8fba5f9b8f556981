"""Probes of endpoints that do not answer, or not in time."""

import asyncio
import resource
import socket
import struct

import pytest

from jobq.net import Address
from jobq.settings import Policy, Settings
from jobq.specs import Heartbeat
from jobq.states import Reason, Status
from tests.integration.probing import (
    OK,
    Names,
    answering,
    connections_to,
    endless,
    free_port,
    full_backlog,
    opened,
    probe,
    probe_once,
    serving,
    silence,
)

# --- no answer -------------------------------------------------------------------------------------------------------


async def test_a_closed_port_is_refused() -> None:
    port = free_port()
    done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "refused"
    assert done.outcome.message == f"127.0.0.1 port {port} refused the connection: nothing listens there"
    assert done.steps == ["connect"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(socket.EAI_NONAME, "does not exist"), (socket.EAI_AGAIN, "no name server answered")],
)
async def test_a_name_without_an_address_is_told(number: int, words: str) -> None:
    class Nowhere(Names):
        async def resolve(self, name: str) -> tuple[Address, ...]:
            raise socket.gaierror(number, "from the system")

    done = await probe_once(Heartbeat(endpoint="http://nowhere.example/"), resolver=Nowhere({}))
    assert done.outcome.error_class == "dns"
    assert words in done.outcome.message
    assert done.steps == ["dns"]


async def test_the_real_resolver_fails_for_a_name_that_cannot_exist() -> None:
    done = await probe_once(Heartbeat(endpoint="http://no-such-host.invalid/"), 60.0)
    assert done.outcome.error_class == "dns", done.outcome


async def test_the_real_resolver_finds_this_machine() -> None:
    async with serving(answering(OK)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://localhost:{port}/"))
    assert done.outcome.status is Status.COMPLETED, done.outcome


async def test_an_address_without_a_route_is_unreachable() -> None:
    settings = Settings(policy=Policy(probe_networks=["255.255.255.255/32"]))
    done = await probe_once(Heartbeat(endpoint="http://255.255.255.255/"), settings=settings)
    assert done.outcome.error_class == "unreachable"
    assert done.outcome.message.startswith("255.255.255.255 port 80 cannot be reached from this worker: ")


async def test_a_worker_without_free_files_says_so() -> None:
    async with serving(answering(OK)) as port, opened() as executor:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as first_free:
            number = first_free.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
        try:
            done = await probe(executor, Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert done.outcome.error_class == "no_resources"
    assert "too many open files" in done.outcome.message


async def test_a_connection_that_is_reset_is_told() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with serving(reset) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "connection_lost"
    assert done.outcome.message == "the connection broke: connection reset by peer"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the server closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", "the server closed the connection in the middle of the headers"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "the server closed the connection after 3 bytes of a longer body",
        ),
    ],
)
async def test_an_answer_that_breaks_off_is_told(answer: bytes, message: str) -> None:
    async with serving(answering(answer)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert (done.outcome.error_class, done.outcome.message) == ("connection_lost", message)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"\x00" * 99])
async def test_what_is_no_http_is_an_invalid_response(answer: bytes) -> None:
    async with serving(answering(answer)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "invalid_response"
    assert done.outcome.message.isprintable()


async def test_endless_headers_end_early() -> None:
    async def headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        await endless(writer, b"X-Filler: " + b"x" * 4096 + b"\r\n", 0)

    async with serving(headers) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "invalid_response"
    assert done.seconds < 4


# --- one deadline over everything ------------------------------------------------------------------------------------


async def test_a_server_that_never_answers_times_out_and_says_where() -> None:
    async with serving(silence) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"), 1.5)
    assert (done.outcome.reason, done.outcome.error_class) == (Reason.TIMED_OUT, "timed_out")
    assert done.outcome.message == "timed out after 1.5 s while waiting for the first byte of the answer"
    assert 1.49 <= done.seconds < 5
    assert done.steps == ["connect", "first_byte"]
    assert done.context.steps[-1].seconds >= 0.5


async def test_a_body_that_drips_times_out_although_each_read_is_quick() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        await endless(writer, b"x", 0.01)

    async with serving(drip) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"), 1.5)
    assert done.outcome.error_class == "timed_out"
    assert "while reading the answer (" in done.outcome.message
    assert done.seconds < 5


async def test_headers_that_drip_time_out() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        await endless(writer, b"x", 0.01)

    async with serving(drip) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"), 1.5)
    assert done.outcome.message.endswith("while reading the answer (0 bytes of its body had come)")


async def test_a_tls_handshake_that_never_ends_times_out() -> None:
    async with serving(silence) as port:
        done = await probe_once(Heartbeat(endpoint=f"https://127.0.0.1:{port}/"), 1.5)
    assert done.outcome.message == "timed out after 1.5 s while waiting for the TLS handshake"
    assert done.steps == ["connect", "tls"]


async def test_a_connection_that_is_never_taken_times_out() -> None:
    with full_backlog("127.0.0.1") as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"), 0.3)
    assert done.outcome.message.startswith(f"timed out after 0.3 s while connecting to 127.0.0.1 port {port}:")
    assert done.steps == ["connect"]


async def test_a_name_server_that_never_answers_times_out() -> None:
    class Silent(Names):
        async def resolve(self, name: str) -> tuple[Address, ...]:
            await asyncio.Event().wait()
            raise AssertionError

    done = await probe_once(Heartbeat(endpoint="http://slow.example/"), 0.2, resolver=Silent({}))
    assert done.outcome.message == (
        "timed out after 0.2 s while resolving slow.example: the name server does not answer"
    )


async def test_a_probe_that_is_canceled_closes_its_connection() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def notice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await reader.read()
        gone.set()

    async with serving(notice) as port, opened() as executor:
        running = asyncio.create_task(probe(executor, Heartbeat(endpoint=f"http://127.0.0.1:{port}/")))
        await asyncio.wait_for(came.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(gone.wait(), 10)


def unchecked(url: str, headers: dict[str, str]) -> Heartbeat:
    """A probe with more headers than are accepted: enough to fill the buffers of both ends."""
    spec = Heartbeat(endpoint=url).model_copy(update={"headers": headers})
    object.__setattr__(spec, "request_headers", lambda _secrets: headers)
    return spec


async def test_a_server_that_reads_nothing_cannot_keep_the_connection_open() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(OK)
        await asyncio.sleep(0.5)

    async with serving(deaf) as port, opened() as executor:
        headers = {f"X-{number}": "x" * 60_000 for number in range(100)}
        done = await probe(executor, unchecked(f"http://127.0.0.1:{port}/", headers))
        assert done.outcome.status is Status.COMPLETED
        await asyncio.sleep(0)
        assert not connections_to(port)


async def test_a_large_request_to_a_slow_reader_arrives_whole() -> None:
    sizes: list[int] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        sizes.append(len(await reader.readuntil(b"\r\n\r\n")))
        writer.write(OK)
        await writer.drain()

    headers = {f"X-{number}": "x" * 60_000 for number in range(100)}
    async with serving(slow, limit=2**24) as port:
        done = await probe_once(unchecked(f"http://127.0.0.1:{port}/", headers))
    assert done.outcome.status is Status.COMPLETED, done.outcome
    assert sizes[0] > 6_000_000
