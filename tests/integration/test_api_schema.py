"""The OpenAPI document is what the API does: asked at random, it answers as documented, and never breaks."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID
from zlib import crc32

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api import Api

CHECKS = [
    checks.not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
STREAMS = re.compile(r"/events$|/logs/stream$")  # they do not end


def asked(examples: int, steps: int = 6, *, derandomize: bool = True) -> settings:
    """So many examples; ``derandomize``: the same ones each time."""
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=derandomize, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as api:
        yield api


@pytest.fixture
def schema(api: Api) -> Any:
    key = api.jobq.keys.create("schema", "admin", operator=True).key
    found = schemathesis.openapi.from_asgi("/v1/openapi.json", api.app).exclude(path_regex=STREAMS.pattern)
    found.config.update(headers={"Authorization": f"Bearer {key}"})

    @found.hook
    def map_body(context: Any, body: Any) -> Any:
        """No chance finds a kind and its spec: half of what is random gives way to an example of the document."""
        examples = (
            context.operation.definition.raw.get("requestBody", {}).get("content", {}).get("application/json", {})
        )
        values = [example["value"] for example in examples.get("examples", {}).values()]
        number = crc32(repr(body).encode())
        return values[number % len(values)] if values and number % 2 else body

    return found


def ask_each(schema: Any, examples: int, **how: bool) -> int:
    """So many requests to each operation, valid or not."""
    count = 0
    for operation in (result.ok() for result in schema.get_all_operations()):

        @asked(examples, **how)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        ask()
        count += 1
    return count


def walk(schema: Any, examples: int, steps: int, **how: bool) -> Counter[str]:
    """So many walks along the links: what was made is looked at, changed and ended. Returns which paths of things that
    are there were answered.
    """
    found: Counter[str] = Counter()

    class Walk(schema.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            case.validate_response(response, checks=CHECKS)
            if response.status_code < 300 and "_id}" in case.operation.path:
                found[case.operation.path] += 1

    # Hypothesis takes beginnings of walks up again, and finds another API there than the first time: that ends its search.
    with suppress(FlakyStrategyDefinition):
        run_state_machine_as_test(Walk, settings=asked(examples, steps, **how))
    return found


def test_every_operation_answers_as_documented(schema: Any) -> None:
    assert ask_each(schema, 2) > 50


def test_along_its_links_the_api_answers_as_documented(schema: Any) -> None:
    assert walk(schema, 15, 8), "no walk came to anything"


def test_an_answer_of_long_walks_is_documented_also_where_it_is_rare(api: Api) -> None:
    flow = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}, "name": "page"}
    once = {"Idempotency-Key": "once"}
    made = api.made("/v1/workflows", flow, **once)
    api.jobq.delete_workflow(UUID(made["id"]))
    paths = api.app.openapi()["paths"]
    for answer, operation in (
        (api.local.post("/v1/workflows", json=flow, headers=once), paths["/v1/workflows"]["post"]),
        (api.local.patch("/v1/tenants/a%0Ab", json={"weight": 2.0}), paths["/v1/tenants/{name}"]["patch"]),
    ):
        assert answer.status_code == 404
        assert "404" in operation["responses"]


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_api_answers_as_documented_whatever_it_is_asked(schema: Any) -> None:
    ask_each(schema, 60, derandomize=False)
    found: Counter[str] = Counter()
    for _ in range(6):
        found += walk(schema, 30, 12, derandomize=False)
    assert len(found) > 15, f"the walks came to few things: {found}"


def test_each_thing_that_is_made_is_linked_to_what_can_be_asked_about_it(api: Api) -> None:
    document = api.app.openapi()
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    made = document["paths"]["/v1/jobs"]["post"]["responses"]["201"]["links"]
    assert {"get_job", "cancel", "retry", "get_logs", "get_why"} <= made.keys()
    assert made["get_job"] == {"operationId": "get_job", "parameters": {"job_id": "$response.body#/id"}}
    assert "get_workflow" in document["paths"]["/v1/workflows"]["post"]["responses"]["201"]["links"]
