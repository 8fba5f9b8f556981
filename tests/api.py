"""The HTTP API as tests ask it: in this process, through its ASGI door, as a client on loopback (or elsewhere)."""

from __future__ import annotations

from typing import Any, Self

from starlette.testclient import TestClient

from jobq import JobQ, Settings
from jobq.api.app import create_app

SECRET_KEY = "a pepper for tests, of thirty-two bytes or more"
HEARTBEAT = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}}


class Api:
    """An app on a database, and those who ask it."""

    def __init__(self, database_url: str, **settings: Any) -> None:
        self.settings = Settings(database_url=database_url, secret_key=SECRET_KEY, **settings)
        self.jobq = JobQ(settings=self.settings, actor="test")
        self.app = create_app(self.settings, self.jobq)
        self.local = self.client()

    def __enter__(self) -> Self:
        self.local.__enter__()  # the app's life begins
        return self

    def __exit__(self, *_: object) -> None:
        self.local.__exit__(None, None, None)
        self.jobq.close()

    def client(self, *, peer: str = "127.0.0.1", host: str = "localhost", **headers: str) -> TestClient:
        """Somebody who asks from this address, by this name of the server."""
        return TestClient(
            self.app, base_url=f"http://{host}", client=(peer, 50_000), headers=headers, raise_server_exceptions=False
        )  # fmt: skip

    def holder(self, tenant: str, scope: str = "admin", *, operator: bool = False) -> TestClient:
        """Somebody with an API key, from elsewhere."""
        key = self.jobq.acting(tenant, "test").keys.create(f"{tenant}'s", scope, operator=operator).key
        return self.client(peer="192.0.2.1", host="jobq.example", Authorization=f"Bearer {key}")

    # --- with a key or, while there is none, from loopback -----------------------------------------------------------

    def made(self, path: str, document: Any, who: TestClient | None = None, **headers: str) -> dict[str, Any]:
        """What a POST made."""
        answer = (who or self.local).post(path, json=document, headers=headers)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which must have this status and code."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document: dict[str, Any] = answer.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["detail"].endswith("."), "a detail is a sentence"
    assert document["request_id"] == answer.headers["x-request-id"]
    return document
