"""`jobq api` and `jobq key`, as an operator starts them and a program asks them."""

import http.client
import json
import re
import signal
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.command import Command
from tests.services import wait_until

HEARTBEAT = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}}


@pytest.fixture
def command(database_url: str, tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url, JOBQ_SECRET_KEY="k" * 40)
    yield command
    command.close()


def started(command: Command, *options: str) -> tuple[subprocess.Popen[bytes], str, int]:
    """The process, and the host and port that it listens on."""
    process = command.start("api", "--port", "0", "--log-format", "json", *options)

    def address() -> re.Match[str] | None:
        assert process.poll() is None, command.printed(process, "err")
        return re.search(r"listens on https?://\[?([\w.:]+?)\]?:(\d+)\"", command.printed(process, "err"))

    found = wait_until(address, timeout=30, what="the API to listen")
    assert found is not None
    return process, found[1], int(found[2])


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, key: str = ""
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    told = answer.status, json.loads(answer.read() or b"null")
    connection.close()  # the server closes idle ones, and commands take their time on a busy machine
    return told


def test_an_operator_serves_the_api_and_a_program_uses_its_key(command: Command) -> None:
    process, host, port = started(command)
    connection = http.client.HTTPConnection(host, port, timeout=20)
    assert ask(connection, "GET", "/readyz")[0] == 200
    status, job = ask(connection, "POST", "/v1/jobs", HEARTBEAT)
    assert (status, job["status"]) == (201, "PENDING"), "without keys, loopback is served"
    assert job["id"] in command.ok("job", "show", job["id"], "--json").out

    made = command.ok("key", "create", "deploy", "--scope", "read", "--expires-in", "P1D")
    key = made.out.removesuffix("\n")
    assert key not in made.err
    wait_until(lambda: ask(connection, "GET", "/v1/jobs")[0] == 401, what="keys to be needed")
    assert ask(connection, "GET", "/v1/jobs", key=key)[1]["items"][0]["id"] == job["id"]
    assert ask(connection, "POST", "/v1/jobs", HEARTBEAT, key=key)[0] == 403
    (listed,) = command.ok("key", "list", "--json").items
    assert (listed["name"], listed["scope"]) == ("deploy", "read")
    assert key not in command.ok("key", "list").out
    command.ok("key", "revoke", listed["id"])
    wait_until(lambda: ask(connection, "GET", "/v1/jobs", key=key)[0] == 401, timeout=15, what="the key to be refused")
    connection.close()

    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert key not in command.printed(process, "err"), "no log tells a key"


def test_the_api_is_served_beyond_loopback_only_with_keys(command: Command) -> None:
    command.refused("keys_missing", "api", "--host", "0.0.0.0", "--port", "0")
    command.ok("key", "create", "ops", "--operator", "--scope", "admin")
    process, _, port = started(command, "--host", "0.0.0.0")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    assert ask(connection, "GET", "/v1/jobs")[0] == 401
    connection.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0


def test_the_api_is_served_by_https(command: Command, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    _, _, port = started(command, "--tls-cert", str(certificate), "--tls-key", str(key))
    trusting = ssl.create_default_context(cafile=str(certificate))
    connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=trusting)
    assert ask(connection, "GET", "/livez") == (200, {"status": "ok"})
    connection.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    private, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]),
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "cert.pem", folder / "key.pem"


def test_an_address_that_is_taken_is_said(command: Command) -> None:
    _, _, port = started(command)
    command.refused("bad_address", "api", "--port", str(port))


@pytest.mark.parametrize(
    "arguments", [("create", "", "--scope", "run"), ("create", "x", "--scope", "god"), ("revoke", "no-id")]
)
def test_mistakes_with_keys_are_explained(command: Command, arguments: tuple[str, ...]) -> None:
    command.refused("validation_error", "key", *arguments)
