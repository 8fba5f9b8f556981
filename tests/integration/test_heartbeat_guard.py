"""Where probes must not go, whatever names, redirects and routes say; and whom they trust."""

import asyncio
import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobq.settings import Policy, Settings
from jobq.specs import Heartbeat
from jobq.states import Reason, Status
from tests.integration.probing import (
    OK,
    Names,
    answering,
    free_port,
    opened,
    probe,
    probe_once,
    serving,
)

# --- where probes must not go ----------------------------------------------------------------------------------------


async def test_a_policy_that_is_narrower_than_at_acceptance_blocks_without_a_packet() -> None:
    asked: list[bytes] = []
    async with serving(answering(OK, asked=asked)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"), settings=Settings())
    assert (done.outcome.error_class, done.outcome.retry) == ("blocked", False)
    assert not asked


async def test_a_malformed_url_ends_as_invalid() -> None:
    done = await probe_once(Heartbeat(endpoint="http://0x7f.1/"))
    assert (done.outcome.reason, done.outcome.retry) == (Reason.INVALID, False)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "10.0.0.1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
    ],
)
async def test_a_name_with_any_forbidden_address_is_blocked(addresses: list[str]) -> None:
    asked: list[bytes] = []
    async with serving(answering(OK, asked=asked)) as port:
        spec = Heartbeat(endpoint=f"http://rebound.example:{port}/")
        done = await probe_once(spec, settings=Settings(), resolver=Names({"rebound.example": [addresses]}))
    assert (done.outcome.error_class, done.outcome.retry) == ("blocked", False)
    assert "to which rebound.example resolves" in done.outcome.message
    assert done.steps == ["dns"]
    assert not asked


async def test_a_name_that_is_rebound_between_check_and_connect_gains_nothing() -> None:
    asked: list[bytes] = []
    names = Names({"rebound.example": [["127.0.0.1"], ["127.0.0.2"]]})
    async with (
        serving(answering(OK)) as port,
        serving(answering(OK, asked=asked), host="127.0.0.2", port=port),
    ):
        settings = Settings(policy=Policy(probe_networks=["127.0.0.1/32"]))
        async with opened(settings, resolver=names) as executor:
            spec = Heartbeat(endpoint=f"http://rebound.example:{port}/")
            assert (await probe(executor, spec)).outcome.status is Status.COMPLETED
            assert names.asked == ["rebound.example"]
            assert (await probe(executor, spec)).outcome.error_class == "blocked"
    assert not asked


async def test_a_connection_that_leads_elsewhere_than_checked_is_dropped_before_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dial = socket.socket.connect_ex

    def divert(each: socket.socket, where: tuple[str, int]) -> int:  # as a translated route on the worker would
        return dial(each, ("127.0.0.1", where[1]))

    monkeypatch.setattr(socket.socket, "connect_ex", divert)
    asked: list[bytes] = []
    async with serving(answering(OK, asked=asked)) as port:
        done = await probe_once(Heartbeat(endpoint=f"http://127.0.0.2:{port}/"))
    assert (done.outcome.error_class, done.outcome.retry) == ("blocked", False)
    assert not asked


async def test_proxies_in_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with serving(answering(OK)) as port:
        assert (await probe_once(Heartbeat(endpoint=f"http://127.0.0.1:{port}/"))).outcome.status is Status.COMPLETED


# --- TLS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """An authority, and certificates that it signed: for service.example and 127.0.0.1, and an expired one."""

    folder: Path

    def server(self, name: str = "good") -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "authority.pem"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    usage = ["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
    openssl(
        "req",
        "-x509",
        *key,
        *usage,
        "-keyout",
        "authority.key",
        "-out",
        "authority.pem",
        "-subj",
        "/CN=Tests",
    )
    (folder / "names").write_text("subjectAltName=DNS:service.example,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-extfile", "names"]
    for name, days in (("good", "2"), ("expired", "-1")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=service.example")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-days", days, "-out", f"{name}.pem")
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    openssl("req", "-x509", *key, *names, "-keyout", "own.key", "-out", "own.pem", "-subj", "/CN=own")
    return Certificates(folder)


async def test_tls_is_verified_against_the_name_and_timed(certificates: Certificates) -> None:
    names = Names({"service.example": [["127.0.0.1"]]})
    seen: list[str] = []
    tls = certificates.server()
    tls.sni_callback = lambda _socket, name, _context: seen.append(name)
    async with serving(answering(OK), tls=tls) as port:
        spec = Heartbeat(endpoint=f"https://service.example:{port}/", body_contains="ok")
        done = await probe_once(spec, resolver=names, tls=certificates.client())
    assert done.outcome.status is Status.COMPLETED, done.outcome
    assert done.steps == ["dns", "connect", "tls", "first_byte", "body"]
    assert seen == ["service.example"]


async def test_tls_to_a_literal_address_is_verified_against_that_address(certificates: Certificates) -> None:
    async with serving(answering(OK), tls=certificates.server()) as port:
        done = await probe_once(Heartbeat(endpoint=f"https://127.0.0.1:{port}/"), tls=certificates.client())
    assert done.outcome.status is Status.COMPLETED, done.outcome


async def test_a_body_over_tls_may_end_with_the_connection(certificates: Certificates) -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\n\r\nhealthy"), tls=certificates.server()) as port:
        spec = Heartbeat(endpoint=f"https://127.0.0.1:{port}/", body_contains="healthy")
        done = await probe_once(spec, tls=certificates.client())
    assert done.outcome.status is Status.COMPLETED, done.outcome


async def test_a_large_answer_over_tls_is_read_up_to_the_limit(certificates: Certificates) -> None:
    async def huge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000)
        await writer.drain()

    async with serving(huge, tls=certificates.server()) as port:
        spec = Heartbeat(endpoint=f"https://127.0.0.1:{port}/", body_contains="needle")
        done = await probe_once(spec, tls=certificates.client())
    assert done.outcome.error_class == "too_large"


@pytest.mark.parametrize(
    ("certificate", "host", "message"),
    [
        ("own", "127.0.0.1", "the certificate of 127.0.0.1 is self-signed"),
        ("expired", "127.0.0.1", "the certificate of 127.0.0.1 has expired"),
        ("good", "127.0.0.2", "the certificate of 127.0.0.2 is for another address"),
        ("good", "other.example", "the certificate of other.example is for another host name"),
    ],
)
async def test_a_certificate_that_does_not_hold_is_told(
    certificates: Certificates, certificate: str, host: str, message: str
) -> None:
    names = Names({"other.example": [["127.0.0.1"]]})
    async with serving(answering(OK), host="0.0.0.0", tls=certificates.server(certificate)) as port:
        spec = Heartbeat(endpoint=f"https://{host}:{port}/")
        done = await probe_once(spec, resolver=names, tls=certificates.client())
    assert (done.outcome.error_class, done.outcome.message) == ("tls", message)
    assert done.steps[-1] == "tls"


async def test_the_system_s_authorities_do_not_know_a_private_one(certificates: Certificates) -> None:
    async with serving(answering(OK), tls=certificates.server()) as port:
        done = await probe_once(Heartbeat(endpoint=f"https://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "tls"
    assert "an authority that this worker does not know" in done.outcome.message


@pytest.mark.parametrize(
    ("scheme", "answer", "error_class", "message"),
    [
        (
            "https",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "tls",
            "port {} does not speak TLS: the endpoint may be http://",
        ),
        (
            "https",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            "tls",
            "port {} does not speak TLS: the endpoint may be http://",
        ),
        (
            "http",
            b"\x15\x03\x01\x00\x02\x02\x46",  # the alert that OpenSSL sends
            "invalid_response",
            "port {} speaks TLS: the endpoint may be https://",
        ),
    ],
)
async def test_mixed_up_schemes_are_recognized(scheme: str, answer: bytes, error_class: str, message: str) -> None:
    async def blurt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        await reader.read()

    async with serving(blurt) as port:
        done = await probe_once(Heartbeat(endpoint=f"{scheme}://127.0.0.1:{port}/"))
    assert (done.outcome.error_class, done.outcome.message) == (error_class, message.format(port))


async def test_a_server_that_hangs_up_in_the_handshake_fails_as_tls() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async with serving(hang_up) as port:
        done = await probe_once(Heartbeat(endpoint=f"https://127.0.0.1:{port}/"))
    assert done.outcome.error_class == "tls"
