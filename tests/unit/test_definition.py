from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobq.definition import Definition, JobRequest, checked_all
from jobq.errors import Forbidden, InvalidInput, JobQError
from jobq.schedule import Cron, Every
from jobq.settings import Policy, Settings
from jobq.specs import Container, Heartbeat, Spec
from jobq.validation import MAX_BYTES, parse

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)
PROBE: dict[str, Any] = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}}
RUN: dict[str, Any] = {"kind": "CONTAINER", "spec": {"image": "busybox"}}


@pytest.fixture(autouse=True)
def _no_settings_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_CONFIG", "/nonexistent/jobq.toml")


def installation(**policy: Any) -> Settings:
    return Settings(database_url="sqlite://", policy=Policy(**policy))


def define(settings: Settings | None = None, **fields: Any) -> Definition:
    return parse(Definition, {**PROBE, **fields}).checked(settings or installation())


def request(settings: Settings | None = None, **fields: Any) -> JobRequest:
    return parse(JobRequest, {**PROBE, **fields}).checked(settings or installation(), NOW)


def refusal(make: Any, **fields: Any) -> JobQError:
    with pytest.raises(JobQError) as raised:
        make(**fields)
    str(raised.value).encode()
    return raised.value


# --- what is filled in -----------------------------------------------------------------------------------------------


def test_a_definition_gets_every_default_that_it_leaves_open() -> None:
    workflow = define()
    assert (workflow.queue, workflow.priority, workflow.concurrency) == ("heartbeat", 4, None)
    assert workflow.timeout == define(timeout=None).timeout == timedelta(seconds=10)
    assert (workflow.misfire, workflow.overlap) == ("coalesce", "queue")
    assert workflow.max_consecutive_job_failures_allowed == 3
    assert workflow.stale_after == timedelta(days=7)
    assert (workflow.retry.max_attempts, workflow.retry.retry_lost) == (3, True)
    assert workflow.spec["expected_status_code"] == 200
    assert workflow.schedule is None


def test_containers_have_defaults_of_their_own() -> None:
    workflow = define(**RUN)
    assert (workflow.queue, workflow.timeout) == ("container", timedelta(seconds=30))
    assert (workflow.retry.max_attempts, workflow.retry.retry_lost) == (1, False)


def test_a_name_is_assigned_where_none_is_given() -> None:
    first, second = str(define().name), str(define().name)
    assert first.startswith("heartbeat-")
    assert len(first) == len("heartbeat-") + 8
    assert first != second
    assert define(name="probe the shop é").name == "probe the shop é"


def test_a_checked_definition_is_stable() -> None:
    workflow = define(interval="PT5M", timeout=3)
    assert workflow.checked(installation()) == workflow
    assert parse(Definition, workflow.model_dump()) == workflow


def test_the_json_of_a_definition_reads_back_as_the_same() -> None:
    workflow = define(interval="PT5M", timeout=3, start_at="2026-03-01T08:00:00+01:00", retry={"retry_on": ["dns"]})
    document = workflow.model_dump(mode="json")
    assert (document["interval"], document["timeout"], document["stale_after"]) == ("PT5M", "PT3S", "P7D")
    assert document["start_at"] == "2026-03-01T07:00:00Z"
    assert parse(Definition, document) == workflow


def test_specs_of_built_in_classes_name_their_kind() -> None:
    workflow = parse(Definition, {"spec": Heartbeat(endpoint="https://example.org/")}).checked(installation())
    assert workflow.kind == "HEARTBEAT"
    assert workflow.spec == define().spec
    assert parse(JobRequest, {"spec": Container(image="busybox")}).checked(installation(), NOW).kind == "CONTAINER"


def test_specs_of_other_classes_need_a_kind_and_the_right_one() -> None:
    class Own(Spec):
        text: str

    assert refusal(define, kind=None, spec=Own(text="a")).pointer == "/kind"
    assert refusal(define, kind="HEARTBEAT", spec=Container(image="a")).pointer == "/spec"


@pytest.mark.parametrize(
    ("schedule", "fields"),
    [
        (Every("PT5M"), {"interval": "PT5M"}),
        (Every(90, "2026-03-01T08:00:00Z"), {"interval": 90, "start_at": "2026-03-01T08:00:00Z"}),
        (Cron("0 3 * * *", "Europe/Berlin"), {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}),
    ],
)
def test_a_schedule_is_given_as_a_value_or_by_its_fields(schedule: Every | Cron, fields: dict[str, Any]) -> None:
    by_value, by_fields = define(name="a", schedule=schedule), define(name="a", **fields)
    assert by_value == by_fields
    assert by_fields.schedule == schedule


# --- what is refused -------------------------------------------------------------------------------------------------

BAD_SCHEDULES = [
    ({"interval": 0}, "/interval"),
    ({"interval": -5}, "/interval"),
    ({"interval": "PT0.5S"}, "/interval"),
    ({"interval": "P366D"}, "/interval"),
    ({"interval": "P1M"}, "/interval"),
    ({"interval": []}, "/interval"),
    ({"cron": "* * *"}, "/cron"),
    ({"cron": "61 * * * *"}, "/cron"),
    ({"cron": "0 0 * * *", "timezone": "Mars/Olympus"}, "/timezone"),
    ({"interval": 60, "timezone": "Europe/Berlin"}, "/timezone"),
    ({"interval": 60, "cron": "* * * * *"}, "/cron"),
    ({"interval": 60, "start_at": "2026-01-01T00:00:00"}, "/start_at"),
    ({"interval": 60, "start_at": "2500-01-01T00:00:00Z"}, "/start_at"),
    ({"start_at": "2026-01-01T00:00:00Z"}, "/start_at"),
    ({"schedule": Every(60), "interval": 60}, "/schedule"),
]


@pytest.mark.parametrize(("fields", "pointer"), BAD_SCHEDULES)
def test_a_bad_schedule_has_the_code_invalid_schedule(fields: dict[str, Any], pointer: str) -> None:
    error = refusal(define, **fields)
    assert (error.code, error.pointer) == ("invalid_schedule", pointer)


def test_an_interval_below_the_operators_minimum_is_an_invalid_schedule() -> None:
    strict = installation(min_interval=timedelta(minutes=5))
    assert define(strict, interval="PT5M").interval == timedelta(minutes=5)
    for fields in ({"interval": 299}, {"cron": "* * * * *"}):
        assert refusal(define, settings=strict, **fields).code == "invalid_schedule"


@pytest.mark.parametrize("make", [define, request])
@pytest.mark.parametrize("timeout", [0, -1, "PT0S", "P1Y", "soon", [], float("nan"), True, 301, "PT5M0.000001S"])
def test_a_timeout_of_nothing_or_above_the_maximum_is_an_invalid_timeout(make: Any, timeout: object) -> None:
    error = refusal(make, timeout=timeout)
    assert (error.code, error.pointer) == ("invalid_timeout", "/timeout")


def test_the_operator_sets_the_maximum_of_containers() -> None:
    assert refusal(define, **RUN, timeout=3601).code == "invalid_timeout"
    generous = installation(max_container_timeout=timedelta(hours=2))
    assert define(generous, **RUN, timeout="PT2H").timeout == timedelta(hours=2)
    strict = installation(max_container_timeout=timedelta(seconds=20))
    assert define(strict, **RUN).timeout == timedelta(seconds=20)


@pytest.mark.parametrize(
    ("spec", "code", "pointer"),
    [
        ({"image": ""}, "invalid_image", "/spec/image"),
        ({"image": "a b"}, "invalid_image", "/spec/image"),
        ({"image": "a", "env": {"A=B": "1"}}, "invalid_env", "/spec/env"),
        ({"image": "a", "env": {"A\x00": "1"}}, "invalid_env", "/spec/env"),
        ({"image": "a", "env": {"A": "x" * 65_536}}, "invalid_env", "/spec/env"),
        ({"image": "a", "memory": "5MB"}, "invalid_resources", "/spec/memory"),
        ({"image": "a", "pids": -5}, "invalid_resources", "/spec/pids"),
        ({"image": "a", "cpus": 1000}, "invalid_resources", "/spec/cpus"),
        ({"image": "a", "privileged": True}, "forbidden_option", "/spec/privileged"),
        ({"image": "a", "network": "host"}, "forbidden_option", "/spec/network"),
        ({"image": "a", "imgae": "b"}, "validation_error", "/spec/imgae"),
        ({"image": 5}, "validation_error", "/spec/image"),
        ({"image": "a", "files": {"/a\x00b": "1"}}, "validation_error", "/spec/files"),
        ({"image": "a", "files": {f"/{n}": "x" * 60_000 for n in range(5)}}, "payload_too_large", "/spec"),
        ({}, "validation_error", "/spec/image"),
        ([], "validation_error", "/spec"),
        (None, "validation_error", "/spec"),
    ],
)
def test_a_bad_container_is_refused_with_its_own_code(spec: Any, code: str, pointer: str) -> None:
    error = refusal(define, kind="CONTAINER", spec=spec)
    assert (error.code, error.pointer) == (code, pointer)


def test_what_the_operator_forbids_is_forbidden_and_not_invalid() -> None:
    strict = installation(images=["registry.example.org/*"])
    for make in (define, request):
        error = refusal(make, settings=strict, **RUN)
        assert isinstance(error, Forbidden)
        assert (error.code, error.pointer) == ("image_not_allowed", "/spec/image")


@pytest.mark.parametrize(
    ("spec", "code", "pointer"),
    [
        ({"endpoint": "ftp://example.org"}, "invalid_url", "/spec/endpoint"),
        ({"endpoint": "http://user@example.org"}, "invalid_url", "/spec/endpoint"),
        ({"endpoint": "http://127.1"}, "invalid_url", "/spec/endpoint"),
        ({"endpoint": "http://169.254.169.254/"}, "target_blocked", "/spec/endpoint"),
        ({"endpoint": "https://example.org", "expected_status_code": 99}, "validation_error", "/spec/expected_status_code"),
        ({"endpoint": "https://example.org", "expected_status_code": 600}, "validation_error", "/spec/expected_status_code"),
    ],
)  # fmt: skip
def test_a_bad_probe_is_refused_with_its_own_code(spec: Any, code: str, pointer: str) -> None:
    error = refusal(define, spec=spec)
    assert (error.code, error.pointer) == (code, pointer)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"kind": "NONE"}, "/kind"),
        ({"kind": 5}, "/kind"),
        ({"kind": None}, "/kind"),
        ({"name": ""}, "/name"),
        ({"name": "  "}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": "a\x00"}, "/name"),
        ({"name": "\ud800"}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"queue": ""}, "/queue"),
        ({"queue": "Upper"}, "/queue"),
        ({"queue": "-a"}, "/queue"),
        ({"queue": "a\n"}, "/queue"),
        ({"queue": "x" * 64}, "/queue"),
        ({"priority": 10}, "/priority"),
        ({"priority": -1}, "/priority"),
        ({"priority": "5"}, "/priority"),
        ({"priority": True}, "/priority"),
        ({"retry": {"max_attempts": 0}}, "/retry/max_attempts"),
        ({"retry": {"attempts": 3}}, "/retry/attempts"),
        ({"retry": 3}, "/retry"),
        ({"stale_after": 0}, "/stale_after"),
        ({"stale_after": "P1M"}, "/stale_after"),
        ({"intervall": "PT5M"}, "/intervall"),
        ({"a/b": 1}, "/a~1b"),
    ],
)
@pytest.mark.parametrize("make", [define, request])
def test_wrong_fields_are_validation_errors_with_a_json_pointer(
    make: Any, fields: dict[str, Any], pointer: str
) -> None:
    error = refusal(make, **fields)
    assert isinstance(error, InvalidInput)
    assert (error.code, error.http_status, error.pointer) == ("validation_error", 422, pointer)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"concurrency": 0}, "/concurrency"),
        ({"misfire": "never"}, "/misfire"),
        ({"misfire_grace": 0.5}, "/misfire_grace"),
        ({"misfire_grace": 0}, "/misfire_grace"),
        ({"misfire_grace": "P2D"}, "/misfire_grace"),
        ({"max_catch_up": 0}, "/max_catch_up"),
        ({"overlap": "perhaps"}, "/overlap"),
        ({"max_consecutive_job_failures_allowed": 0}, "/max_consecutive_job_failures_allowed"),
        ({"max_consecutive_job_failures_allowed": 101}, "/max_consecutive_job_failures_allowed"),
        ({"retention": -1}, "/retention"),
        ({"dedupe_key": "a"}, "/dedupe_key"),
        ({"schedule": "PT5M"}, "/schedule"),
    ],
)
def test_wrong_fields_of_workflows_are_validation_errors(fields: dict[str, Any], pointer: str) -> None:
    error = refusal(define, **fields)
    assert (error.code, error.pointer) == ("validation_error", pointer)


# --- single jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"dedupe_key": ""}, "validation_error", "/dedupe_key"),
        ({"dedupe_key": "x" * 201}, "validation_error", "/dedupe_key"),
        ({"dedupe_key": "a\x00"}, "validation_error", "/dedupe_key"),
        ({"dedupe_key": "\ud800"}, "validation_error", "/dedupe_key"),
        ({"idempotency_key": 5}, "validation_error", "/idempotency_key"),
        ({"interval": 60}, "validation_error", "/interval"),
        ({"scheduled_at": "2026-02-01T00:00:00"}, "invalid_schedule", "/scheduled_at"),
        ({"scheduled_at": datetime(2026, 2, 1)}, "invalid_schedule", "/scheduled_at"),  # noqa: DTZ001
        ({"scheduled_at": "2027-01-10T12:00:01Z"}, "invalid_schedule", "/scheduled_at"),
        ({"scheduled_at": 5}, "invalid_schedule", "/scheduled_at"),
        ({"state": {"a": "\x00"}}, "validation_error", "/state/a"),
        ({"state": {"a": float("inf")}}, "invalid_json", "/state/a"),
        ({"state": object()}, "validation_error", "/state"),
        ({"state": "x" * MAX_BYTES}, "payload_too_large", "/state"),
    ],
)
def test_wrong_particulars_of_a_job_are_refused(fields: dict[str, Any], code: str, pointer: str) -> None:
    error = refusal(request, **fields)
    assert (error.code, error.pointer) == (code, pointer)


def test_a_job_runs_when_it_is_asked_to_and_the_past_means_now() -> None:
    assert request().scheduled_at is None
    assert request(scheduled_at="2026-02-01T01:00:00+01:00").scheduled_at == datetime(2026, 2, 1, tzinfo=UTC)
    assert request(scheduled_at="2020-01-01T00:00:00Z").scheduled_at == NOW


def test_a_job_may_wait_for_ever_and_bring_state() -> None:
    job = request(stale_after=None, state=[1, {"a": None}], dedupe_key="order 7", idempotency_key="k")
    assert (job.stale_after, job.state, job.dedupe_key, job.idempotency_key) == (None, [1, {"a": None}], "order 7", "k")


def test_jobs_of_a_template_differ_in_their_particulars_only() -> None:
    template = parse(JobRequest, {**PROBE, "priority": 7, "dedupe_key": "of the first"}).prepared(installation())
    job = template.job(NOW, name="a", state=5, scheduled_at="2020-01-01T00:00:00Z")
    assert (job.name, job.state, job.scheduled_at, job.priority, job.queue) == ("a", 5, NOW, 7, "heartbeat")
    assert job.dedupe_key is None
    for particulars, code in (({"priority": 3}, "validation_error"), ({"scheduled_at": "now"}, "invalid_schedule")):
        assert refusal(template.job, now=NOW, **particulars).code == code


batches = st.lists(
    st.fixed_dictionaries(
        {"spec": st.sampled_from(["a", "b"]).map(lambda name: {"endpoint": f"https://{name}.example.org/"})},
        optional={
            "priority": st.integers(0, 9),
            "queue": st.sampled_from(["x", "y"]),
            "timeout": st.integers(1, 300),
            "stale_after": st.none() | st.integers(1, 99),
            "retry": st.sampled_from([{}, {"max_attempts": 3}, {"retry_on": ["dns"]}]),
            "name": st.just("n"),
            "state": st.integers(),
            "dedupe_key": st.sampled_from(["k", "l"]),
        },
    ),
    max_size=8,
)


@given(batches)
@settings(deadline=None)
def test_checking_many_gives_what_checking_each_gives(fields: list[dict[str, Any]]) -> None:
    settings = Settings(database_url="sqlite://")
    requests = [parse(JobRequest, {"kind": "HEARTBEAT", "name": "n", **each}) for each in fields]
    assert checked_all(requests, settings, NOW) == [each.checked(settings, NOW) for each in requests]


def test_the_bad_one_of_many_is_told_by_its_number() -> None:
    requests = [
        parse(JobRequest, PROBE),
        parse(JobRequest, {**PROBE, "state": "\x00"}),
        parse(JobRequest, {**PROBE, "spec": {}}),
    ]
    error = refusal(checked_all, requests=requests, settings=installation(), now=NOW)
    assert (error.pointer, error.message) == ("/1/state", "Request 1: Text must not contain a NUL character.")
    error = refusal(checked_all, requests=requests[::-1], settings=installation(), now=NOW)
    assert error.pointer == "/0/spec/endpoint"


def test_twenty_thousand_equal_jobs_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    monkeypatch.setattr(Heartbeat, "check", lambda self, policy: judged.append(self))
    requests = [parse(JobRequest, {**PROBE, "dedupe_key": str(number)}) for number in range(20_000)]
    began = time.perf_counter()
    jobs = checked_all(requests, installation(), NOW)
    assert time.perf_counter() - began < 10
    assert len(judged) == 1
    assert [job.dedupe_key for job in jobs] == [str(number) for number in range(20_000)]
    assert len({job.name for job in jobs}) > 19_900
