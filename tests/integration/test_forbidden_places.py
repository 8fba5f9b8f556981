"""Every door out of jobq, and every form of an address inside: none is reached, whoever names it, and whenever.

The doors: probes; the HTTP, SQL and file connectors as source and as target, also where a page, a redirect or a name
leads; registries of images. Two witnesses: a server at every loopback address, and the interpreter's own audit events.
"""

import asyncio
import json
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from jobq.connectors import Access, ConnectorError, Entity, InvalidConfiguration, Read
from jobq.definition import JobRequest
from jobq.errors import JobQError
from jobq.net import check_url
from jobq.settings import Policy, Settings
from jobq.specs import Heartbeat
from jobq.states import Reason, Status
from jobq.testing import read_all
from jobq.validation import parse
from tests.integration.probing import Names, answering, opened, probe, serving
from tests.unit.hostile_urls import FORBIDDEN, MALFORMED
from workers.connectors.file_configs import JsonlSourceConfig
from workers.connectors.file_sources import JsonlSource
from workers.connectors.http import HttpSource, HttpTarget
from workers.connectors.http_configs import HttpSourceConfig, HttpTargetConfig
from workers.connectors.session import Session
from workers.connectors.sql import SqlSource
from workers.connectors.sql_configs import SqlSourceConfig

CORPUS = MALFORMED + FORBIDDEN
PEER = "127.0.0.3"
"""The only address that the policy of these tests opens; all others of this machine are inside."""
ONLY_PEER = Policy(probe_networks=[f"{PEER}/32"])
NOW = datetime(2026, 1, 1, tzinfo=UTC)
INSIDE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
    "168.63.129.16", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "fc00::1",
    "fe80::1", "fec0::1", "ff02::1", "fd00:ec2::254", "2001:0:0:0::80ff:fffe", "::ffff:0:127.0.0.1",
]  # fmt: skip


class Witness:
    """A server at every address of this machine, and all that this process connects to or looks up meanwhile."""

    def __init__(self) -> None:
        self._server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        self._server.setblocking(False)
        self.port = int(self._server.getsockname()[1])
        self.connected: list[str] = []
        self.looked_up: list[str] = []

    def came(self) -> bool:
        """Whether somebody connected to the server."""
        try:
            self._server.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def check(self, *allowed: str) -> None:
        """Nobody came, and nothing was connected to or looked up but what is allowed."""
        assert not self.came()
        assert set(self.connected) <= set(allowed), self.connected
        assert not self.looked_up

    def close(self) -> None:
        self._server.close()


_watching: list[Witness] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Hooks cannot be removed: this one looks away while nobody watches."""
    if not _watching:
        return
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _watching[0].connected.append(str(arguments[1][0]))
    elif event == "socket.getaddrinfo" and not _is_literal(arguments[0]):
        _watching[0].looked_up.append(str(arguments[0]))


def _is_literal(host: Any) -> bool:
    try:
        ip_address(host.decode() if isinstance(host, bytes) else str(host))
    except ValueError:
        return False
    return True


sys.addaudithook(_audit)


@pytest.fixture
def witness() -> Iterator[Witness]:
    found = Witness()
    _watching.append(found)
    yield found
    _watching.clear()
    found.close()


def with_port(url: str, port: int) -> str:
    """The same address, at the witness's port: else nobody would listen there, and nothing would be proven."""
    return re.sub(r"^(\w+://[^/?#]*?)(:[0-9]+)?([/?#].*)?$", rf"\g<1>:{port}\g<3>", url, flags=re.DOTALL)


def refused_at(fields: dict[str, Any], settings: Settings | None = None) -> JobQError:
    with pytest.raises(JobQError) as caught:
        parse(JobRequest, fields).checked(settings or Settings(), NOW)
    return caught.value


# --- as they are written ----------------------------------------------------------------------------------------------


def test_the_corpus_is_large_and_each_form_is_there_once() -> None:
    assert len(CORPUS) == len(set(CORPUS)) >= 160


def _sync(source: dict[str, Any], target: dict[str, Any] | None = None) -> dict[str, Any]:
    targets = [] if target is None else [{"name": "there", "type": "http", "config": target}]
    return {"kind": "SYNC", "spec": {"domain": "d", "source": {"type": "http", "config": source}, "targets": targets}}


GOOD = "https://example.com/"
DOORS = {
    "probe": lambda url: {"kind": "HEARTBEAT", "spec": {"endpoint": url}},
    "source": lambda url: _sync({"url": url}),
    "one entity": lambda url: _sync({"url": GOOD, "entity_url": url}),
    "target": lambda url: _sync({"url": GOOD}, {"url": url}),
    "update": lambda url: _sync({"url": GOOD}, {"url": GOOD, "update": {"url": url}}),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_accepts_an_address_inside(door: str, witness: Witness) -> None:
    parse(JobRequest, DOORS[door](GOOD)).checked(Settings(), NOW)
    for url in (*CORPUS, *(with_port(url, witness.port) for url in FORBIDDEN)):
        refused_at(DOORS[door](url))
    witness.check()


async def test_what_was_accepted_all_the_same_is_refused_by_who_executes_it(witness: Witness) -> None:
    session = Session(parse(HttpTargetConfig, {"url": GOOD}), Access(Policy()), 1000)
    async with opened(Settings()) as executor:
        for url in (*CORPUS, *(with_port(url, witness.port) for url in FORBIDDEN)):
            outcome = (await probe(executor, Heartbeat.model_construct(endpoint=url))).outcome
            assert outcome.error_class == "blocked" or outcome.reason is Reason.INVALID, url
            assert not outcome.retry
            with pytest.raises(InvalidConfiguration):
                await session.ask("GET", url)
    await session.close()
    witness.check()


# --- as they are resolved ---------------------------------------------------------------------------------------------


async def test_a_name_that_leads_inside_is_not_reached_through_any_door(witness: Witness) -> None:
    where, no_tls = f"http://a.example:{witness.port}/", ssl.create_default_context()
    for addresses in (*([each] for each in INSIDE), *(["93.184.216.34", each] for each in INSIDE)):
        names = Names({"a.example": [addresses]})
        async with opened(Settings(), resolver=names, tls=no_tls) as executor:
            outcome = (await probe(executor, Heartbeat(endpoint=where))).outcome
        assert (outcome.error_class, outcome.retry) == ("blocked", False), addresses
        session = Session(parse(HttpTargetConfig, {"url": where}), Access(Policy()), 1000, resolver=names)
        with pytest.raises(InvalidConfiguration, match=r"a\.example resolves"):
            await session.ask("PUT", where, body=b"{}")
        await session.close()
    witness.check()


async def test_a_name_that_is_bound_anew_between_two_requests_is_checked_anew(witness: Witness) -> None:
    names = Names({"a.example": [[PEER], ["127.0.0.1"]]})
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"), host=PEER,
                       port=witness.port + 1 if witness.port < 65535 else 0) as port:  # fmt: skip
        where = f"http://a.example:{port}/"
        session = Session(parse(HttpTargetConfig, {"url": where}), Access(ONLY_PEER), 1000, resolver=names)
        assert (await session.ask("GET", where)).status == 200
        with pytest.raises(InvalidConfiguration, match="is a loopback address"):
            await session.ask("GET", where)
        await session.close()
    witness.check(PEER)


# --- as others lead there ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def leading(pages: dict[int, Any], status: int = 200) -> AsyncIterator[str]:
    """A service at the only open address. Page n names pages[n] as the next; or it redirects there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        found = re.match(r"\w+ /(\d+)", head)
        to = pages.get(int(found[1])) if found else None
        body = json.dumps({"items": [{"id": 1}], "next": to if status == 200 else None}).encode()
        location = f"Location: {to}\r\n" if status != 200 else ""
        line = f"HTTP/1.1 {status} x\r\n{location}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(line.encode("latin-1") + body)
        await writer.drain()

    async with serving(serve, host=PEER) as port:
        yield f"http://{PEER}:{port}"


async def read(config: dict[str, Any]) -> str:
    """Read a source to its end; how that went."""
    source = HttpSource(parse(HttpSourceConfig, config), Access(ONLY_PEER))
    try:
        async for _ in source.read(Read()):
            pass
    except ConnectorError as error:
        return str(error)
    finally:
        await source.close()
    return ""


def is_elsewhere(url: str) -> bool:
    """Whether it is, as a relative URL, a good one of a public host: //example.com/."""
    try:
        return check_url(urljoin(f"http://{PEER}/", url), ONLY_PEER.networks_allowed()).host != PEER
    except (JobQError, ValueError):
        return False


async def test_no_next_page_leads_inside(witness: Witness) -> None:
    relative = [f"//127.0.0.1:{witness.port}/", f"\\\\127.0.0.1:{witness.port}\\", f"/\\127.0.0.1:{witness.port}/",
                f"http:127.0.0.1:{witness.port}/", f"http:/127.0.0.1:{witness.port}/", f"///127.0.0.1:{witness.port}/",
                f"@127.0.0.1:{witness.port}/", f"http://{PEER}@127.0.0.1:{witness.port}/"]  # fmt: skip
    sent = [
        *(url for url in CORPUS if url.isprintable()),
        *(with_port(url, witness.port) for url in FORBIDDEN),
        *relative,
    ]
    sent = [url for url in sent if not is_elsewhere(url)]
    async with leading(dict(enumerate(sent))) as peer:
        config = {"records": "items", "pagination": {"type": "link", "next": "next"}}
        ends = [await read({**config, "url": f"{peer}/{number}"}) for number in range(len(sent))]
    witness.check(PEER)
    assert sum("does not reach" in end for end in ends) >= 2 * len(FORBIDDEN)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_through_any_door(status: int, witness: Witness) -> None:
    inside = [f"http://127.0.0.1:{witness.port}/", f"//127.0.0.1:{witness.port}/", f"http://localhost:{witness.port}/",
              f"http://[::1]:{witness.port}/", "http://169.254.169.254/latest/meta-data/", "/0"]  # fmt: skip
    async with leading(dict(enumerate(inside)), status) as peer, opened(Settings(policy=ONLY_PEER)) as executor:
        for number in range(len(inside)):
            outcome = (await probe(executor, Heartbeat(endpoint=f"{peer}/{number}"))).outcome
            assert outcome.status is Status.FAILED
            assert "redirects are not followed" in await read({"url": f"{peer}/{number}"})
            target = HttpTarget(parse(HttpTargetConfig, {"url": f"{peer}/{number}"}), Access(ONLY_PEER))
            with pytest.raises(InvalidConfiguration, match="redirects are not followed"):
                await target.write(Entity("k", {}, "id"))
            await target.close()
    witness.check(PEER)


async def test_a_file_area_over_http_is_not_left_by_a_redirect(witness: Witness) -> None:
    async with leading({1: f"http://127.0.0.1:{witness.port}/secret.jsonl"}, 302) as peer:
        policy = Policy(areas=[f"{peer}/1"])
        config = parse(JsonlSourceConfig, {"path": f"{peer}/1/things.jsonl"})
        source = JsonlSource(config, Access(policy))
        with pytest.raises(ConnectorError):
            await asyncio.to_thread(read_all, source)
    assert not witness.came()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]", "[::]",
     "127.0.0.1.", "8.8.8.8,127.0.0.1", "%2Ftmp", "%40abstract", "[::1%25lo]", "LOCALHOST", "ip6-localhost", "u@127.0.0.1"],
)  # fmt: skip
@pytest.mark.parametrize("query", ["", "?host=127.0.0.1", "?hostaddr=127.0.0.1", "?service=x", "?options=-chost%3Dx"])
def test_no_database_inside_is_connected_to(host: str, query: str, witness: Witness) -> None:
    config = parse(SqlSourceConfig, {"secret": "dsn", "secrets": {"dsn": "d"}, "table": "t", "key": "id"})
    dsn = f"postgresql://u:p@{host}:{witness.port}/d{query}"
    with pytest.raises(ConnectorError):
        read_all(SqlSource(config, Access(Policy(), {"dsn": dsn})))
    assert not witness.came()


def test_a_database_file_outside_of_every_area_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "inside.db").touch()
    (tmp_path / "area").mkdir()
    (tmp_path / "area" / "link.db").symlink_to(tmp_path / "inside.db")
    config = parse(SqlSourceConfig, {"secret": "dsn", "secrets": {"dsn": "d"}, "table": "t", "key": "id"})
    for path in ("inside.db", "area/../inside.db", "area/link.db", "area/%2e%2e/inside.db"):
        dsn = f"sqlite:///{tmp_path}/{path}"
        with pytest.raises(ConnectorError):
            read_all(SqlSource(config, Access(Policy(areas=[str(tmp_path / "area")]), {"dsn": dsn})))


def test_no_image_is_pulled_from_a_registry_inside() -> None:
    hosts = ["127.0.0.1:5000", "localhost", "localhost:6379", "10.0.0.1", "169.254.169.254", "0x7f.1:80", "2130706433:80",
             "127.1:80", "metadata.google.internal", "foo.localhost:80", "168.63.129.16"]  # fmt: skip
    for host in hosts:
        error = refused_at({"kind": "CONTAINER", "spec": {"image": f"{host}/latest/meta-data:1"}})
        assert error.code == "image_not_allowed", host
