"""RabbitMQ under load is restarted, purged, loses its queues, and gives up on consumers: no job is lost or executed
twice, and every worker takes hints again, with early and with late acknowledgement.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import kombu
import pytest

from jobq.broker import message_queue
from tests.conftest import upgrade_at
from tests.proxy import Proxy
from tests.rig import Rig
from tests.services import Postgres, RabbitMQ, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300), pytest.mark.needs_rabbitmq, pytest.mark.needs_postgres]


@dataclass
class Stage:
    rig: Rig
    proxy: Proxy
    """Before the server, for the fleet."""
    server: RabbitMQ
    vhost: str

    def each_queue(self, verb: str) -> None:
        """Purge or delete the queue of every worker, and the common one."""
        with kombu.Connection(self.server.url(self.vhost)) as connection:
            for name in ["tally", *self.rig.ears]:
                getattr(message_queue(self.rig.fleet.jobq.settings, name)(connection.default_channel), verb)()


@pytest.fixture(scope="module", params=["early", "late"])
def fleet_on_rabbitmq(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Postgres,
    rabbitmq_session: RabbitMQ,
) -> Iterator[Stage]:
    postgres_server.start()
    rabbitmq_session.start()
    database, vhost = postgres_server.url(postgres_server.create()), rabbitmq_session.create()
    upgrade_at(database)
    url, folder = rabbitmq_session.url(vhost), tmp_path_factory.mktemp(request.param)
    with (
        Proxy(("127.0.0.1", rabbitmq_session.port)) as proxy,
        Rig(folder, database, proxy.url(url), url, acks=request.param) as rig,
    ):
        rig.start()
        yield Stage(rig, proxy, rabbitmq_session, vhost)


@pytest.fixture
def stage(fleet_on_rabbitmq: Stage) -> Iterator[Stage]:
    """Under load, before the fault; afterwards nobody has died of it."""
    fleet_on_rabbitmq.rig.load(100, 0.02)
    yield fleet_on_rabbitmq
    rig = fleet_on_rabbitmq.rig
    assert all(process.poll() is None for process in rig.fleet.processes), rig.fleet.logs()


def goes_on(stage: Stage) -> None:
    """All that was accepted is executed once, and all workers take hints."""
    stage.rig.settle_each_once(60)
    stage.rig.listen(90)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_jobs_go_on_while_rabbitmq_restarts_and_by_hints_when_it_is_back(stage: Stage, how: str) -> None:
    getattr(stage.server, how)()
    stage.rig.load(200, 0.02)
    stage.rig.settle_each_once(60)
    stage.server.start()
    goes_on(stage)


@pytest.mark.parametrize("verb", ["purge", "delete"])
def test_purged_and_deleted_queues_lose_no_job_and_are_declared_again(stage: Stage, verb: str) -> None:
    for _ in range(3):
        stage.rig.load(100, 0.02)
        stage.each_queue(verb)
    goes_on(stage)


def test_a_consumer_that_rabbitmq_gave_up_on_consumes_again(stage: Stage) -> None:
    """With late acknowledgement a hint that waits for room stays unacknowledged for up to 20 s."""
    before = stage.server.control("eval", "application:get_env(rabbit, consumer_timeout).")
    give_up_after(stage, 1000)
    try:
        stage.rig.load(600, 1.0)  # 40 at once: hints of the others wait with their worker
        wait_until(lambda: stage.rig.unfinished() < 300, timeout=100, what="half of the jobs to end")
    finally:
        give_up_after(stage, int("".join(filter(str.isdigit, before)) or 1_800_000))
    log = stage.server.log.read_text()
    assert stage.rig.fleet.acks == "early" or "Timeout value used" in log or "delivery acknowledgement" in log
    goes_on(stage)


def give_up_after(stage: Stage, milliseconds: int) -> None:
    """Connections that are opened from now on are held to it, so everybody has to open one."""
    stage.server.control("eval", f"application:set_env(rabbit, consumer_timeout, {milliseconds}).")
    stage.server.control("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
    stage.server.control("close_all_connections", "-p", stage.vhost, "the test changes the consumer timeout")


def test_connections_to_rabbitmq_that_went_silent_for_good_are_given_up_within_a_minute(stage: Stage) -> None:
    """A worker that is cut off in this way, perhaps while it connects, must not wait for ever."""
    assert stage.proxy.silence() > 0
    stage.rig.load(300, 0.02)
    stage.rig.settle_each_once(60)
    stage.rig.listen(60)


def test_a_rabbitmq_that_accepts_connections_and_says_nothing_holds_nobody_up(stage: Stage) -> None:
    stage.proxy.freeze()
    stage.rig.load(300, 0.02)
    stage.rig.settle_each_once(60)
    began = stage.proxy.accepted
    wait_until(lambda: stage.proxy.accepted > began, timeout=60, what="new connections, which are silent, too")
    stage.rig.load(100, 0.02)
    stage.rig.settle_each_once(60)
    stage.proxy.heal()
    stage.rig.listen(60)
