"""Messages from whoever can write to the broker: dropped and counted, never executed, and the worker goes on."""

import base64
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobq.broker import TASK, VERSION, Hint, parse_hint
from jobq.store.jobs import new_id
from tests import services
from tests.integration.brokers import Stack
from tests.plugins import executed
from tests.services import wait_until
from tests.stores import QUEUE, ahead
from workers.app import EmbeddedWorker

KEY = f"jobq.{QUEUE}"
NO_HINT = [VERSION, QUEUE, []]
ELSEWHERE = "jobq.elsewhere"


class Attacker:
    """Writes what it likes into the worker's queue, and sees how many of its messages were dropped."""

    def __init__(self, stack: Stack, redis_url: str) -> None:
        self.stack = stack
        self.redis = redis.Redis.from_url(redis_url)
        self.worker: EmbeddedWorker = stack.worker()
        self.before = 0

    @property
    def app(self) -> Any:
        return self.worker._app

    def push(self, body: bytes, headers: Any, **parts: Any) -> None:
        """A message as Redis holds it: the frame is well-formed, what is in it need not be."""
        properties = {
            "delivery_tag": str(uuid4()), "body_encoding": "base64", "correlation_id": None, "reply_to": None,
            "delivery_info": {"exchange": "", "routing_key": KEY}, "delivery_mode": 2, "priority": 0,
        }  # fmt: skip
        message = {
            "body": base64.b64encode(body).decode(), "content-type": "application/json", "content-encoding": "utf-8",
            "headers": headers, "properties": properties,
        }  # fmt: skip
        self.redis.lpush(KEY, json.dumps({**message, **parts}))

    def call(self, args: Any, *, task: str = TASK, embed: Any = None, **headers: Any) -> None:
        """A call of a task by Celery's protocol."""
        given = {"lang": "py", "task": task, "id": str(uuid4()), "root_id": None, "parent_id": None, "group": None}
        self.push(json.dumps([args, {}, embed or {}]).encode(), {**given, **headers})

    def wait_until_dropped(self, count: int) -> None:
        """Until exactly so many messages were dropped since the last time, and none is left."""
        count += self.before
        wait_until(lambda: self.app.dropped >= count and not self.redis.llen(KEY), what=f"drop number {count}")
        assert self.app.dropped == count
        self.before = count
        assert self.app.worker.runner.running == {}

    def check_that_work_goes_on(self) -> None:
        (job_id,) = self.stack.store.queued()
        self.stack.broker.publish([Hint(QUEUE, [job_id])])
        wait_until(lambda: self.stack.store.job(job_id).finished)
        assert self.stack.store.state(job_id) == "COMPLETED·succeeded"
        assert executed[job_id] == 1


@pytest.fixture(scope="module")
def attacker(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, redis_session: services.Redis
) -> Iterator[Attacker]:
    """One worker for all tests: what one of them broke, the next would tell."""
    file = shutil.copy(sqlite_template, tmp_path_factory.mktemp("hints") / "jobq.sqlite3")
    redis_session.start()
    redis_session.flush()
    stack = Stack(f"sqlite:///{file}", redis_session.url)
    try:
        yield Attacker(stack, redis_session.url)
    finally:
        stack.close()


# --- any message at all ----------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
tasks = st.sampled_from([TASK, "celery.map", "celery.backend_cleanup", "os.system", ""]) | anything
signatures = st.fixed_dictionaries({"task": st.just(TASK), "args": st.just([NO_HINT]), "options": anything})
embeds = st.dictionaries(st.sampled_from(["callbacks", "errbacks", "chain", "chord"]), st.lists(signatures) | anything)
calls = st.tuples(st.just(NO_HINT) | anything, st.just({}) | anything, embeds | anything).map(list)
protocol_1 = st.fixed_dictionaries(
    {"task": tasks, "id": anything, "args": anything, "kwargs": anything, "eta": anything}
)
bodies = st.one_of(
    st.binary(max_size=64),
    (calls | protocol_1 | anything).map(lambda value: json.dumps(value).encode()),
    anything.map(pickle.dumps),
)
known = ["id", "eta", "expires", "timelimit", "retries", "root_id", "shadow", "ignore_result", "group"]
headers = st.dictionaries(st.sampled_from(known) | st.text(max_size=8), anything, max_size=6).flatmap(
    lambda others: st.just(others) | tasks.map(lambda task: {**others, "task": task})
)
forms = st.sampled_from(
    ["application/json", "application/x-python-serialize", "application/x-yaml", "application/data", "text/plain", ""]
)
messages = st.tuples(
    bodies,
    headers,
    st.fixed_dictionaries(
        {
            "content-type": forms | st.text(max_size=8),
            "content-encoding": st.sampled_from(["utf-8", "binary", "rot13", "zlib", "none such"]) | st.none(),
        }
    ),
)


# The worker's threads use that module meanwhile, which Hypothesis takes for the strategies' doing.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
def test_whatever_message_comes_it_is_dropped_and_counted_and_the_worker_goes_on(attacker: Attacker) -> None:
    sent = 0

    # Not shrunk: a worker that fell over once fails every further example.
    @settings(
        max_examples=40, deadline=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.lists(messages, min_size=3, max_size=8))
    def send(batch: list[tuple[bytes, Any, dict[str, Any]]]) -> None:
        nonlocal sent
        for body, header, parts in batch:
            attacker.push(body, header, **parts)
        sent += len(batch)
        attacker.wait_until_dropped(len(batch))

    send()
    assert sent > 100
    attacker.check_that_work_goes_on()


# --- what Celery would obey -------------------------------------------------------------------------------------------


def test_celerys_own_tasks_are_as_foreign_as_any_other(attacker: Attacker) -> None:
    job_id = attacker.stack.store.enqueue_one(scheduled_at=ahead(hours=1))
    signature = {"task": TASK, "args": [], "kwargs": {}, "options": {"queue": ELSEWHERE}, "subtask_type": None}
    own = sorted(set(attacker.app.celery.tasks) - {TASK})
    assert "celery.map" in own
    for name in own:
        attacker.call([signature, [[VERSION, QUEUE, [job_id.hex]]]], task=name)
    attacker.wait_until_dropped(len(own))
    attacker.check_that_work_goes_on()
    assert not attacker.redis.exists(ELSEWHERE)


@pytest.mark.parametrize("header", ["eta", "expires"])
def test_no_message_is_kept_in_memory_until_later(attacker: Attacker, header: str) -> None:
    (job_id,) = attacker.stack.store.queued()
    attacker.call([VERSION, QUEUE, [job_id.hex]], **{header: ahead(hours=1).isoformat()})
    attacker.wait_until_dropped(1)
    attacker.check_that_work_goes_on()


@pytest.mark.parametrize("place", ["callbacks", "errbacks", "chain"])
def test_no_message_makes_a_worker_send_another(attacker: Attacker, place: str) -> None:
    further = {
        "task": TASK, "args": [[], {}, {}], "kwargs": {}, "subtask_type": None, "immutable": True,
        "options": {"queue": ELSEWHERE, "routing_key": ELSEWHERE},
    }  # fmt: skip
    attacker.call([VERSION, QUEUE, [new_id().hex]], embed={place: [further]})
    attacker.wait_until_dropped(1)
    attacker.check_that_work_goes_on()
    assert not list(attacker.redis.scan_iter("*elsewhere*"))


def test_remote_control_reaches_nobody(attacker: Attacker) -> None:
    control = attacker.app.celery.control
    for command in ("shutdown", "pool_restart", "rate_limit", "cancel_consumer", "time_limit"):
        control.broadcast(command, arguments={"queue": KEY, "task_name": TASK, "rate_limit": "1/h", "hard": 1})
    control.revoke(str(uuid4()), terminate=True)
    assert control.ping(timeout=0.3) == []
    attacker.push(json.dumps({"method": "shutdown", "arguments": {}, "destination": None}).encode(), {})
    attacker.wait_until_dropped(1)
    attacker.check_that_work_goes_on()


# --- size and depth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 10_000_000,
        b"[" * 200_000,
        b"[" * 5_000 + b"]" * 5_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        json.dumps([[VERSION, QUEUE, ["f" * 10_000_000]], {}, {}]).encode(),
        json.dumps([[VERSION, QUEUE, [uuid4().hex] * 250_000], {}, {}]).encode(),
        b"[[1," + b"9" * 1_000_000 + b",[]],{},{}]",
    ],
    ids=["10 MB of garbage", "brackets without end", "deep", "deep objects", "a huge id", "many ids", "a huge number"],
)
def test_huge_and_deep_messages_cost_a_line_in_the_log(
    attacker: Attacker, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    attacker.push(body, {"task": TASK, "id": "x" * 1000})
    attacker.wait_until_dropped(1)
    attacker.check_that_work_goes_on()
    assert len(caplog.text) < 500


def test_a_message_of_another_queue_or_of_foreign_ids_starts_nothing(attacker: Attacker) -> None:
    store = attacker.stack.store
    waiting, elsewhere = store.enqueue_one(scheduled_at=ahead(hours=1)), store.enqueue_one(queue="other")
    for queue in (QUEUE, "other", "", "*", "x\x00y", f"{QUEUE}' OR '1'='1"):
        attacker.call([VERSION, queue, [waiting.hex, elsewhere.hex, new_id().hex]])
    attacker.check_that_work_goes_on()
    assert store.job(waiting).attempt == store.job(elsewhere).attempt == 0
    assert set(attacker.app.worker.runner.last_hint) <= {QUEUE}  # made-up names take no memory


# --- the pure part ----------------------------------------------------------------------------------------------------


@given(anything)
def test_no_value_breaks_the_parser_of_hints(value: Any) -> None:
    for args in (value, [VERSION, value, [new_id().hex]], [VERSION, QUEUE, value], [value, QUEUE, [new_id().hex]]):
        hint = parse_hint(args)
        if hint is not None:
            assert args[0] == VERSION
            assert isinstance(hint.queue, str)
            assert len(hint.ids) == len(args[2])
