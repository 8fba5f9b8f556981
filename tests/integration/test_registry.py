"""Images from a registry that asks who is there: a real engine, and a small registry with one image."""

import base64
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import quote

import pytest

from jobq import JobQ, Settings
from jobq.models import Job as JobModel
from jobq.settings import Policy
from jobq.specs import Container
from jobq.states import Reason, Status
from jobq.testing import running
from tests import services
from tests.containers import Job, executor_at

PASSWORD = "canary-5f2c"
LOGIN = {"username": "robot", "password": PASSWORD}
_BASIC = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry(ThreadingHTTPServer):
    """Serves ``team/app:1`` by version 2 of the protocol, read-only, to whoever knows the password."""

    daemon_threads = True

    def __init__(self, root: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        layer = gzip.compress(root, compresslevel=1)
        config = json.dumps({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(root)]},
        }).encode()  # fmt: skip
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": _MANIFEST,
            "config": _entry("application/vnd.docker.container.image.v1+json", config),
            "layers": [_entry("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)],
        }).encode()  # fmt: skip
        self.blobs = {f"blobs/{_digest(blob)}": blob for blob in (layer, config)}
        self.manifests = dict.fromkeys(("manifests/1", f"manifests/{_digest(manifest)}"), manifest)
        self.image = f"127.0.0.1:{self.server_address[1]}/team/app:1"
        self.logins: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    protocol_version: ClassVar[str] = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        login = self.headers.get("Authorization", "")
        self.server.logins.append(login)
        what = self.path.removeprefix("/v2/").removeprefix("team/app/")
        if login != _BASIC:
            said = f"login required, not {base64.b64decode(login.partition(' ')[2]).decode()}"
            body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": said}]}).encode()
            self._send(401, body, "application/json", challenge=True)
        elif not what:
            self._send(200, b"{}", "application/json")
        elif what in self.server.manifests:
            self._send(200, self.server.manifests[what], _MANIFEST)
        elif what in self.server.blobs:
            self._send(200, self.server.blobs[what], "application/octet-stream")
        else:
            self._send(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', "application/json")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _send(self, status: int, body: bytes, kind: str, *, challenge: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", _digest(body))
        if challenge:
            self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the test looks at ``logins``."""


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _entry(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}


@pytest.fixture
def registry(docker_engine: services.Docker) -> Iterator[Registry]:
    server = Registry(services.busybox_image())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    docker_engine.clear()
    docker_engine.request("DELETE", f"/images/{quote(server.image, safe='/:')}?force=1")


@pytest.fixture
def jobq(docker_engine: services.Docker) -> Iterator[JobQ]:
    policy = Policy(images=["*", "127.0.0.1:*/*"])
    settings = Settings(docker_host=docker_engine.url, secret_key="a key for tests, long enough", policy=policy)
    with running(settings, queues={"container": 1}) as jobq:
        yield jobq


def ran(jobq: JobQ, registry: Registry, **fields: object) -> JobModel:
    spec = {"image": registry.image, "command": ["echo", "pulled"], "memory": "32MB", **fields}
    return jobq.wait(jobq.enqueue(spec, kind="CONTAINER").id, timeout=60)


def told(jobq: JobQ, job: JobModel) -> str:
    """All that people can see of a job."""
    return repr([jobq.get(job.id), *jobq.logs(job.id), jobq.details(job.id)])


def test_a_private_image_is_pulled_with_the_login_in_the_secret(jobq: JobQ, registry: Registry) -> None:
    jobq.secrets.set("registry", json.dumps(LOGIN))
    job = ran(jobq, registry, registry_secret="registry")
    assert job.status is Status.COMPLETED, job.message
    assert [line.text for line in jobq.logs(job.id)] == [f"pulling {registry.image}", "pulled"]
    assert _BASIC in registry.logins
    assert PASSWORD not in told(jobq, job)


def test_without_a_login_the_message_says_how_to_name_one(jobq: JobQ, registry: Registry) -> None:
    job = ran(jobq, registry)
    assert (job.status, job.attempt) == (Status.FAILED, 1)
    assert "which registry_secret would name" in (job.message or "")
    assert set(registry.logins) == {""}


def test_a_login_that_the_registry_refuses_and_repeats_is_shown_nowhere(jobq: JobQ, registry: Registry) -> None:
    jobq.secrets.set("registry", json.dumps({"username": "robot", "password": "wrong-canary"}))
    job = ran(jobq, registry, registry_secret="registry")
    assert job.status is Status.FAILED
    assert "check the login in the secret 'registry'" in (job.message or "")
    assert len(set(registry.logins)) == 2
    assert "wrong-canary" not in told(jobq, job)


@pytest.mark.parametrize("secret", [PASSWORD, json.dumps({"user": "robot", "password": PASSWORD})])
def test_a_secret_that_is_no_login_ends_the_job_as_invalid_before_anybody_is_asked(
    jobq: JobQ, registry: Registry, secret: str
) -> None:
    jobq.secrets.set("registry", secret)
    job = ran(jobq, registry, registry_secret="registry")
    assert job.reason is Reason.INVALID
    assert "the secret 'registry' holds no login for a registry" in (job.message or "")
    assert registry.logins == []
    assert PASSWORD not in told(jobq, job)


def test_a_secret_that_does_not_exist_ends_the_job_as_invalid(jobq: JobQ, registry: Registry) -> None:
    job = ran(jobq, registry, registry_secret="registry")
    assert job.reason is Reason.INVALID
    assert "There is no secret 'registry'" in (job.message or "")
    assert registry.logins == []


async def test_an_executor_that_was_handed_no_login_says_so(docker_engine: services.Docker, registry: Registry) -> None:
    async with executor_at(docker_engine.url, policy=Policy(images=["127.0.0.1:*/*"])) as executor:
        outcome = await executor.execute(Container(image=registry.image, registry_secret="registry"), Job().ctx)
    assert outcome.reason is Reason.INVALID
    assert "there is no secret 'registry'" in outcome.message
