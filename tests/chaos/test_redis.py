"""Redis under load is flushed, killed, frozen, cut off, slow, full and full of garbage: no job is lost or executed twice,
and every worker takes hints again. One fleet lives through all of it, once with early and once with late acknowledgement.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis

from tests.conftest import upgrade_at
from tests.proxy import Proxy
from tests.rig import Rig
from tests.services import Postgres, Redis, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.needs_redis, pytest.mark.needs_postgres]
LONG = pytest.mark.chaos


@dataclass
class Stage:
    """A fleet whose Redis is behind a proxy."""

    rig: Rig
    server: Redis
    proxy: Proxy

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url)


@pytest.fixture(scope="module", params=["early", pytest.param("late", marks=LONG)])
def fleet_behind_a_proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Postgres,
    redis_session: Redis,
) -> Iterator[Stage]:
    postgres_server.start()
    redis_session.start()
    database = postgres_server.url(postgres_server.create())
    upgrade_at(database)
    folder = tmp_path_factory.mktemp(request.param)
    with (
        Proxy(("127.0.0.1", redis_session.port)) as proxy,
        Rig(folder, database, proxy.url(redis_session.url), redis_session.url, acks=request.param) as rig,
    ):
        rig.start()
        yield Stage(rig, redis_session, proxy)


@pytest.fixture
def stage(fleet_behind_a_proxy: Stage) -> Iterator[Stage]:
    """Under load, before the fault; afterwards nobody has died of it."""
    stage = fleet_behind_a_proxy
    stage.rig.load(100, 0.02)
    yield stage
    stage.proxy.heal()
    stage.server.start()
    stage.server.flush()
    assert all(process.poll() is None for process in stage.rig.fleet.processes), stage.rig.fleet.logs()


def goes_on(stage: Stage, *, listening_within: float = 20) -> None:
    """All that was accepted, before and during the fault, is executed once, and all workers take hints."""
    stage.rig.settle_each_once(30)
    stage.rig.listen(listening_within)


def test_jobs_go_on_within_seconds_when_every_hint_is_flushed(stage: Stage) -> None:
    for _ in range(5):
        stage.rig.load(100, 0.02)
        stage.server.flush()
    goes_on(stage)


def test_hints_that_lay_there_when_redis_was_flushed_delay_their_jobs_by_seconds(stage: Stage) -> None:
    goes_on(stage)
    _scheduler, *workers = stage.rig.fleet.processes
    for worker in workers:
        stage.rig.fleet.freeze(worker)
    try:
        before = stage.rig.ended()
        stage.rig.load(30)
        wait_until(lambda: stage.client.llen("jobq.tally"), what="hints that nobody takes")
        stage.server.flush()
    finally:
        for worker in workers:
            stage.rig.fleet.thaw(worker)
    wait_until(lambda: stage.rig.ended() > before, timeout=5, what="work to go on")
    goes_on(stage)


def test_jobs_go_on_while_redis_is_killed_and_by_hints_when_it_is_back(stage: Stage) -> None:
    stage.server.kill()
    stage.rig.load(200, 0.02)
    stage.rig.settle_each_once(30)
    stage.server.start()
    goes_on(stage)


def test_connections_that_are_reset_are_opened_again(stage: Stage) -> None:
    for _ in range(3):
        stage.rig.load(50, 0.02)
        wait_until(stage.proxy.cut, timeout=20, what="a connection to cut")
    goes_on(stage)


def test_a_redis_that_is_full_loses_no_job_and_is_used_again_when_it_has_room(stage: Stage) -> None:
    stage.client.config_set("maxmemory", 1)
    stage.proxy.cut()  # who connects anew meets refusals at once, others within minutes
    stage.rig.load(200, 0.02)
    stage.rig.settle_each_once(30)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        stage.client.lpush("more", "than fits")
    stage.client.config_set("maxmemory", 0)
    goes_on(stage)


def test_hints_need_no_binding(stage: Stage) -> None:
    """What kombu keeps of exchanges is one key each, and a FLUSHALL or a stray DEL takes it away for ever."""
    for key in stage.client.scan_iter("_kombu.binding.*"):
        stage.client.delete(key)
    stage.rig.load(100)
    goes_on(stage)
    assert not list(stage.client.scan_iter("_kombu.binding.*")), "no queue of ours is reached over one"


def test_garbage_in_the_list_is_dropped_and_ends_no_worker(stage: Stage) -> None:
    for queue in ["tally", *stage.rig.ears]:
        stage.client.lpush(f"jobq.{queue}", b"\x80garbage", b"{}", b"[1]", b"[" * 100_000)
    stage.rig.load(100, 0.02)
    goes_on(stage)


@LONG
def test_a_redis_that_resets_whoever_comes_is_as_if_it_were_away(stage: Stage) -> None:
    stage.proxy.reset()
    stage.rig.load(200, 0.02)
    stage.rig.settle_each_once(30)
    stage.proxy.heal()
    goes_on(stage)


@LONG
def test_a_redis_that_accepts_connections_and_says_nothing_holds_nobody_up(stage: Stage) -> None:
    stage.proxy.freeze()
    stage.rig.load(300, 0.02)
    stage.rig.settle_each_once(30)
    began = stage.proxy.accepted
    wait_until(lambda: stage.proxy.accepted > began, timeout=60, what="new connections, which are silent, too")
    stage.rig.load(100, 0.02)
    stage.rig.settle_each_once(30)
    stage.proxy.heal()
    goes_on(stage, listening_within=60)


@LONG
def test_connections_that_went_silent_for_good_are_given_up_within_a_minute(stage: Stage) -> None:
    assert stage.proxy.silence() > 0
    stage.rig.load(300, 0.02)
    goes_on(stage, listening_within=60)


@LONG
def test_a_slow_redis_slows_no_job_down_by_more_than_seconds(stage: Stage) -> None:
    stage.proxy.slow(0.5, bandwidth=20_000)
    stage.rig.load(500, 0.02)
    goes_on(stage)
