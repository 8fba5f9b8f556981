"""Probes of endpoints that answer: what completes a job, what fails it, and thousands at once."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobq.outbound.client import Outbound
from jobq.plugins import BUILT_IN
from jobq.specs import Heartbeat
from jobq.states import Reason, Status
from tests.integration.probing import (
    OK,
    Names,
    answering,
    endless,
    full_backlog,
    probe_once,
    serving,
)
from workers.heartbeat import HeartbeatExecutor

ROOT = Path(__file__).parents[2]

# --- what a healthy endpoint gives -----------------------------------------------------------------------------------


async def test_the_expected_status_completes_the_job_with_result_steps_and_one_line_of_log() -> None:
    async with serving(answering(OK)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/health?token=s3cret"))
    assert (done.outcome.status, done.outcome.reason) == (Status.COMPLETED, Reason.SUCCEEDED)
    assert done.outcome.result["status_code"] == 200
    assert 0 < done.outcome.result["ms"] <= done.seconds * 1000
    assert done.steps == ["connect", "first_byte", "body"]
    [line] = done.lines
    assert line.startswith(f"system: GET http://127.0.0.1:{port}: 200 OK in ")
    assert "s3cret" not in line


async def test_a_name_is_resolved_and_kept_in_the_host_header_though_its_address_is_dialed() -> None:
    asked: list[bytes] = []
    names = Names({"service.example": [["127.0.0.1"]]})
    async with serving(answering(OK, asked=asked)) as port:
        spec = Heartbeat(endpoint=f"http://service.example:{port}/x?y=1", headers={"X-Key": "s3cret"})
        done = await probe_once(spec, resolver=names)
    assert done.outcome.status is Status.COMPLETED
    assert done.steps == ["dns", "connect", "first_byte", "body"]
    assert asked[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")
    assert f"\r\nHost: service.example:{port}\r\n".encode() in asked[0]
    assert b"\r\nX-Key: s3cret\r\n" in asked[0]


async def test_steps_follow_one_another_and_add_up_to_the_whole() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await asyncio.sleep(0.3)
        writer.write(b"ok")

    async with serving(slow) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    connect, first_byte, body = done.context.steps
    assert first_byte.seconds >= 0.09
    assert body.seconds >= 0.04
    assert connect.at + connect.seconds == pytest.approx(first_byte.at, abs=1e-5)
    assert first_byte.at + first_byte.seconds == pytest.approx(body.at, abs=1e-5)
    assert done.outcome.result["ms"] / 1000 == pytest.approx(
        connect.seconds + first_byte.seconds + body.seconds, abs=1e-3
    )


async def test_head_asks_for_no_body_and_waits_for_none() -> None:
    asked: list[bytes] = []
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", asked=asked)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/", method="HEAD"))
    assert done.outcome.status is Status.COMPLETED
    assert asked[0].startswith(b"HEAD / HTTP/1.1\r\n")


async def test_ipv6_is_reached_by_its_literal() -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    asked: list[bytes] = []
    async with serving(answering(OK, asked=asked), host="::1") as port:
        done = await probe_once(Heartbeat(endpoint=f"http://[::1]:{port}/"))
    assert done.outcome.status is Status.COMPLETED
    assert f"Host: [::1]:{port}\r\n".encode() in asked[0]


async def test_a_dead_address_of_a_name_does_not_hide_a_living_one() -> None:
    async with serving(answering(OK)) as port:
        names = Names({"service.example": [["127.0.0.9", "127.0.0.1"]]})
        done = await probe_once(Heartbeat(endpoint=f"http://service.example:{port}/"), resolver=names)
    assert done.outcome.status is Status.COMPLETED, done.outcome


async def test_a_silent_address_gets_its_share_of_the_time_only() -> None:
    with full_backlog("127.0.0.9") as port:
        async with serving(answering(OK), port=port):
            names = Names({"service.example": [["127.0.0.9", "127.0.0.1"]]})
            spec = Heartbeat(endpoint=f"http://service.example:{port}/")
            done = await probe_once(spec, 4.0, resolver=names)
    assert done.outcome.status is Status.COMPLETED, done.outcome
    assert 1.9 <= done.seconds < 4


# --- answers that are not what was expected --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 503 \x1b[31mEvil\r\n\r\n", "expected status 200, got 503 Service Unavailable"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "expected status 200, got 204 No Content"),
        (b"HTTP/1.1 599 Own Words\r\n\r\n", "expected status 200, got 599"),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: https://example.com/?token=s3cret\r\n\r\n",
            "expected status 200, got 301 Moved Permanently (the redirect to https://example.com is not followed)",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n",
            "expected status 200, got 302 Found (the redirect is not followed)",
        ),
    ],
)
async def test_another_status_fails_the_job_and_says_which(answer: bytes, message: str) -> None:
    async with serving(answering(answer)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert (done.outcome.reason, done.outcome.error_class) == (Reason.UNEXPECTED_STATUS, "unexpected_status")
    assert done.outcome.message == message
    assert done.outcome.retry


async def test_another_status_is_told_at_once_even_if_the_body_never_ends() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\n\r\n")
        await endless(writer, b"x", 0.01)

    async with serving(drip) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "unexpected_status"
    assert done.seconds < 1


async def test_a_redirect_to_the_metadata_service_is_an_answer_and_never_followed() -> None:
    asked: list[bytes] = []
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/\r\n\r\n"
    async with serving(answering(answer, asked=asked)) as port:
        spec = Heartbeat(endpoint=f"http://127.0.0.1:{port}/", expected_status_code=302)
        done = await probe_once(spec)
    assert done.outcome.status is Status.COMPLETED
    assert done.outcome.result["status_code"] == 302
    assert len(asked) == 1


async def test_a_text_is_found_in_the_body_wherever_chunks_cut_it() -> None:
    async def chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in '{"status": "grün"}'.encode():
            writer.write(b"1\r\n" + bytes([byte]) + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(chunks) as port:
        spec = Heartbeat(endpoint=f"http://127.0.0.1:{port}/", body_contains='"grün"')
        assert (await probe_once(spec)).outcome.status is Status.COMPLETED


async def test_a_text_is_found_in_a_body_of_latin_1() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=ISO-8859-1\r\n\r\n" + "grün".encode("latin-1")
    async with serving(answering(answer)) as port:
        spec = Heartbeat(endpoint=f"http://127.0.0.1:{port}/", body_contains="grün")
        assert (await probe_once(spec)).outcome.status is Status.COMPLETED


async def test_a_text_that_is_not_there_fails_the_job() -> None:
    async with serving(answering(OK)) as port:
        spec = Heartbeat(endpoint=f"http://127.0.0.1:{port}/", body_contains="healthy")
        done = await probe_once(spec)
    assert done.outcome.error_class == "body_mismatch"
    assert done.outcome.message == "200 OK, but the expected text is not in the body (2 bytes)"


async def test_a_compressed_body_is_never_unpacked() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"
    async with serving(answering(answer)) as port:
        spec = Heartbeat(endpoint=f"http://127.0.0.1:{port}/", body_contains="healthy")
        done = await probe_once(spec)
    assert done.outcome.error_class == "body_mismatch"
    assert "compressed although not asked for" in done.outcome.message


@pytest.mark.parametrize("head", [b"Content-Length: 10485760", b"Transfer-Encoding: chunked", b"X: until the end"])
@pytest.mark.parametrize(
    ("wanted", "error_class"), [(None, ""), ("needle at the start", ""), ("needle at the end", "too_large")]
)
async def test_a_huge_body_matters_only_to_a_text_that_is_not_at_its_start(
    head: bytes, wanted: str | None, error_class: str
) -> None:
    async def huge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        part = b"needle at the start".ljust(16384)
        await endless(writer, b"4000\r\n" + part + b"\r\n" if b"chunked" in head else part, 0)

    async with serving(huge) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/", body_contains=wanted))
    assert done.outcome.error_class == error_class
    assert (done.outcome.status is Status.FAILED) == bool(error_class)
    assert done.seconds < 2


# --- what a spec refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [{"X\n": "1"}, {"X\r\nY": "1"}, {"": "1"}, {"X": "1\r\nY: 2"}, {"X": "\x00"}, {"Content-Length": "9"}]
)
def test_a_header_that_would_break_the_request_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Heartbeat(endpoint="http://example.com/", headers=headers)


def test_the_executor_is_what_the_port_asks_for() -> None:
    executor = HeartbeatExecutor()
    assert executor.kind is BUILT_IN["HEARTBEAT"]
    assert executor.own_deadline is True
    assert Outbound().allowed_networks == ()


# --- thousands at once -----------------------------------------------------------------------------------------------


CROWD = """
import asyncio, json, sys, time
from jobq.specs import Heartbeat
from tests.integration.probing import opened, probe

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

async def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    async with opened() as executor:
        spec = Heartbeat(endpoint=url, body_contains="ok")
        await probe(executor, spec, 20.0)
        before, began = resident(), time.monotonic()
        tasks = [asyncio.create_task(probe(executor, spec, 20.0)) for _ in range(count)]
        peak = 0
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.05)
            peak = max(peak, resident())
        done = [task.result() for task in tasks]
        print(json.dumps({
            "completed": sum(each.outcome.status == "COMPLETED" for each in done),
            "classes": sorted({each.outcome.error_class for each in done}),
            "seconds": time.monotonic() - began,
            "peak": peak - before,
        }))

asyncio.run(main())
"""


async def test_two_thousand_probes_at_once_take_seconds_and_little_memory() -> None:
    together = asyncio.Event()
    count = 0

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await reader.readuntil(b"\r\n\r\n")
        count += 1
        if count == 1:  # the first one is alone; the others are answered once all of them are here
            writer.write(OK)
            return
        if count == 2001:
            together.set()
        await asyncio.wait_for(together.wait(), 15)
        writer.write(OK)

    async with serving(hold) as port:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, f"http://127.0.0.1:{port}/", "2000", stdout=subprocess.PIPE, cwd=ROOT
        )
        output, _ = await child.communicate()
    seen = json.loads(output)
    assert seen["completed"] == 2000, seen
    assert seen["seconds"] < 15, seen
    assert seen["peak"] < 60 * 2**20, seen
