"""Metrics of real processes, as Prometheus scrapes them, next to the ledger that the database keeps."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from jobq import exposition, metrics
from jobq.store.database import Database
from jobq.store.gauges import COUNTED, LANES, read_gauges
from tests.api import HEARTBEAT, Api, problem
from tests.fleet import JOBQ, Fleet
from tests.metrics import Samples, added, by, parse, scrape, total
from tests.services import Postgres, Redis, wait_until

# --- /metrics of the API -----------------------------------------------------------------------------------------------


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as api:
        yield api


def scraped(who: TestClient) -> Samples:
    answer = who.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parse(answer.text)


def test_the_api_shows_what_waits_and_what_it_counted(api: Api) -> None:
    made = api.made("/v1/jobs", HEARTBEAT)
    api.made("/v1/jobs", HEARTBEAT)
    canceled = {"kind": "HEARTBEAT", "queue": "heartbeat", "status": "CANCELED", "reason": "by_user"}
    before = metrics.JOBS.totals().get(tuple(canceled.values()), 0)
    api.local.post(f"/v1/jobs/{made['id']}/cancel")
    found = scraped(api.local)
    assert total(found, "jobq_queue_depth", queue="heartbeat", state="ready") == 1
    assert total(found, "jobq_database_up") == 1
    assert total(found, "jobq_jobs_total", **canceled) == before + 1


def test_requests_are_counted_by_route_and_status_and_never_by_path(api: Api) -> None:
    before = scraped(api.local)
    for path in (
        "/v1/jobs/nonsense",
        "/v1/jobs/00000000-0000-0000-0000-000000000000",
        "/nothing/here",
        "/nothing/there",
    ):
        api.local.get(path)
    api.local.request("BREW", "/v1/jobs")
    after = scraped(api.local)

    def more(**labels: str) -> float:
        name = "jobq_api_requests_total"
        return total(after, name, **labels) - total(before, name, **labels)

    assert more(route="/v1/jobs/{job_id}", status="404", method="GET") == 2
    assert more(route="(none)", status="404") == 2
    assert more(method="_OTHER") == 1
    assert more(route="/metrics", status="200") == 1
    assert total(after, "jobq_api_request_seconds_count", route="/v1/jobs/{job_id}") >= 2
    assert not [key for key in after if "nonsense" in str(key)]


def test_scrapers_share_one_reading_of_the_database(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    scraped(api.local)
    api.made("/v1/jobs", HEARTBEAT)
    assert total(scraped(api.local), "jobq_queue_depth", queue="heartbeat") == 0, "it is as old as 5 s"
    monkeypatch.setattr(exposition, "FRESH", 0.0)
    moment = exposition.time.monotonic() + 6
    monkeypatch.setattr(exposition.time, "monotonic", lambda: moment)
    assert total(scraped(api.local), "jobq_queue_depth", queue="heartbeat") == 1


def test_while_the_database_is_away_a_scrape_says_so_and_shows_the_rest(
    api: Api, postgres_url: str, postgres_server: Postgres
) -> None:
    with Api(postgres_url) as other:
        scraped(other.local)
        shown = other.app.state.metrics
        postgres_server.stop()
        (held,) = [its for its in shown.registry._collector_to_names if isinstance(its, exposition.Held)]
        held._until = 0.0
        found = parse(shown.shown()[0].decode())
        postgres_server.start()
        assert total(found, "jobq_database_up") == 0
        assert not by(found, "jobq_queue_depth", "queue")
        assert total(found, "jobq_database_errors_total") >= 1
        held._until = 0.0
        assert total(parse(shown.shown()[0].decode()), "jobq_database_up") == 1


def test_metrics_are_for_operators(api: Api) -> None:
    operator = api.holder("ops", "read", operator=True)
    problem(api.client().get("/metrics"), 401, "unauthorized")
    problem(api.client(peer="192.0.2.1", host="jobq.example").get("/metrics"), 401, "unauthorized")
    problem(api.holder("acme", "admin").get("/metrics"), 403, "scope")
    assert total(scraped(operator), "jobq_database_up") == 1


# --- a fleet -----------------------------------------------------------------------------------------------------------

QUICK = {"lease": 20, "renew_every": 1, "metrics": "127.0.0.1:0"}


@dataclass
class Running:
    """A fleet whose processes all serve their metrics."""

    fleet: Fleet
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]]
    url: str

    def scrape(self, name: str) -> Samples:
        return scrape(self.ports[name])


def port_of(fleet: Fleet, number: int, words: str) -> int:
    """Which port the process with this number says that it serves."""

    def said() -> Any:
        return re.search(rf"{words} http://127\.0\.0\.1:(\d+)", (fleet.folder / f"{number}.log").read_text())

    wait_until(said, 60, what=f"process {number} to say its port")
    return int(said()[1])


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Postgres,
    postgres_template: str,
    redis_session: Redis,
) -> Iterator[Running]:
    postgres_server.start()
    redis_session.start()
    folder = tmp_path_factory.mktemp("fleet")
    url = postgres_server.url(postgres_server.create(postgres_template))
    with Fleet(folder, url, f"{redis_session.url}", **QUICK) as fleet:
        processes = {"scheduler": fleet.scheduler(), "api": fleet.start(str(JOBQ), "api", "--port", "0")}
        for name in ("left", "right"):
            processes[name] = fleet.start(str(JOBQ), "worker", "-Q", "nap:8", "--metrics", "127.0.0.1:0")
        ports = {"api": port_of(fleet, 1, "listens on")}
        for number, name in ((0, "scheduler"), (2, "left"), (3, "right")):
            ports[name] = port_of(fleet, number, "metrics are served on")
        wait_until(lambda: len(fleet.jobq.workers.list()) == 2, 60, what="the workers to register")
        yield Running(fleet, ports, processes, f"http://127.0.0.1:{ports['api']}")


def nap(seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    spec = {"seconds": seconds, **more.pop("spec", {})}
    return {"kind": "NAP", "spec": spec, "retry": {"max_attempts": 1}, **more}


@pytest.mark.timeout(240)
def test_what_all_processes_counted_is_what_the_ledger_says_also_where_a_worker_was_killed(running: Running) -> None:
    import httpx2

    fleet = running.fleet
    with httpx2.Client(base_url=running.url, timeout=30) as api:

        def post(path: str, document: Any = None) -> Any:
            answer = api.post(path, json=document)
            assert answer.status_code < 300, answer.text
            return answer.json()

        fleet.jobq.enqueue_many([nap() for _ in range(40)] + [nap(spec={"then": "fail"}) for _ in range(7)])
        again = nap(spec={"fails": 1}, retry={"max_attempts": 2, "initial": 0.1})
        fleet.jobq.enqueue_many([again] * 3)
        waiting = [
            post("/v1/jobs", nap(scheduled_at=(datetime.now(UTC) + timedelta(days=9)).isoformat(), dedupe_key="x"))
            for _ in range(3)
        ]
        post(f"/v1/jobs/{waiting[0]['id']}/cancel")
        fleet.wait_until_done(90)

        long = fleet.jobq.enqueue_many([nap(300) for _ in range(12)])
        wait_until(lambda: fleet.ask("SELECT 1 FROM jobq_jobs WHERE worker_id IS NOT NULL HAVING count(*) = 12"), 60,
                   what="the naps to run")  # fmt: skip
        wait_until(
            lambda: total(running.scrape("left"), "jobq_job_queue_wait_seconds_count")
            + total(running.scrape("right"), "jobq_job_queue_wait_seconds_count") == fleet.ask(
                "SELECT sum(attempt) FROM jobq_jobs")[0][0], 20, what="the claims to be counted")  # fmt: skip
        wait_until(lambda: total(running.scrape("api"), "jobq_queue_depth", queue="nap", state="running") == 12, 20,
                   what="the running naps to be shown")  # fmt: skip
        shown = running.scrape("api")
        assert (total(shown, "jobq_worker_slots", queue="nap", state="busy"), total(shown, "jobq_workers")) == (12, 2)
        last = running.scrape("right")
        running.processes["right"].kill()
        wait_until(lambda: fleet.ask("SELECT 1 FROM jobq_jobs WHERE status = 'FAILED' AND reason <> 'error' LIMIT 1"),
                   60, what="the reaper to end what was lost")  # fmt: skip
        for job_id in long:
            api.post(f"/v1/jobs/{job_id}/cancel")
        fleet.wait_until_done(60)

    found = added(last, *(running.scrape(name) for name in ("scheduler", "api", "left")))
    ledger = Counter({
        (kind, queue, status, reason): count for kind, queue, status, reason, count in fleet.ask(
            "SELECT kind, queue, status, reason, count(*) FROM jobq_jobs GROUP BY 1, 2, 3, 4")
    })  # fmt: skip
    assert len(ledger) >= 5, ledger
    assert by(found, "jobq_jobs_total", "kind", "queue", "status", "reason") == ledger
    (attempts,) = fleet.ask("SELECT count(*) FROM jobq_attempts WHERE outcome <> 'LOST'")[0]
    (lost,) = fleet.ask("SELECT count(*) FROM jobq_attempts WHERE outcome = 'LOST'")[0]
    assert total(found, "jobq_job_duration_seconds_count", kind="NAP", queue="nap") == attempts
    assert total(found, "jobq_jobs_recovered_total") == lost > 0
    assert total(found, "jobq_workers_gone_total") == 1, "its neighbour saw it"
    assert (
        total(found, "jobq_promoted_jobs_total", queue="nap") >= total(found, "jobq_hinted_jobs_total", queue="nap") > 0
    )
    assert total(found, "jobq_outcomes_refused_total") == 0


# --- what a scrape costs -------------------------------------------------------------------------------------------------

FILL = """INSERT INTO jobq_jobs (id, tenant, kind, name, queue, status, reason, trigger, priority, max_attempts, created_at,
ready_at) SELECT gen_random_uuid(), 't' || i % 50, 'NOOP', 'n', 'q' || i % 5, 'PENDING', 'ready', 'MANUAL', 4 + i % 2, 1,
now(), now() - i % 1000 * interval '1 second' FROM generate_series(1, {count}) i"""


@pytest.mark.parametrize("backlog", [30_000, pytest.param(1_000_000, marks=pytest.mark.chaos)])
@pytest.mark.timeout(300)
def test_a_scrape_reads_no_more_rows_however_many_wait(
    postgres_server: Postgres, postgres_template: str, backlog: int, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres_server.start()
    url = postgres_server.url(postgres_server.create(postgres_template))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.format(count=backlog).encode())
        connection.execute("VACUUM ANALYZE jobq_jobs")
    database = Database(url, pool_size=1)
    plans = explained(database)
    with database.read() as conn:
        found = read_gauges(conn)
    database.close()
    plans = [plan for plan in plans if "Actual Rows" in plan["Plan"]]  # what an EXPLAIN explains is not executed
    rows = sum(looked_at(plan["Plan"]) for plan in plans)
    with capsys.disabled():
        print(f"\n{backlog} ready jobs: {len(plans)} statements look at {rows} rows; depth {sum(found.depth.values())}")
    assert len(plans) >= 5, "nothing was explained"
    assert rows <= COUNTED + 10 * LANES
    assert sum(found.depth.values()) == pytest.approx(backlog, rel=0.1), "an estimate, and a good one"
    assert all(980 <= age <= 1400 for age in found.oldest.values()), found.oldest


def explained(database: Database) -> list[dict[str, Any]]:
    """The plans of what its connections execute from now on."""
    import json

    import sqlalchemy as sa

    plans: list[dict[str, Any]] = []

    def keep(notice: Any) -> None:
        _, found, plan = str(notice.message_primary).partition("plan:\n")
        if found:
            plans.append(json.loads(plan))

    def explain(connection: Any, _: Any) -> None:
        connection.add_notice_handler(keep)
        with connection.cursor() as cursor:
            cursor.execute("LOAD 'auto_explain'")
            for setting in ("log_min_duration = 0", "log_level = notice", "log_format = json", "log_analyze = on"):
                cursor.execute(f"SET auto_explain.{setting}")
        connection.commit()

    sa.event.listen(database.engine, "connect", explain)
    return plans


def looked_at(plan: dict[str, Any]) -> float:
    """The rows of tables that a plan looked at."""
    here = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if "Relation Name" in plan else 0
    return float(here * plan["Actual Loops"]) + sum(looked_at(below) for below in plan.get("Plans", []))
