"""Syncs with real processes and real peers: an HTTP service in another process, PostgreSQL, SQLite and files.

One fleet serves all tests of the module; each has a domain, targets and tables of its own.
"""

import csv
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from jobq import InvalidInput, Job, Reason, Status
from tests import services
from tests.command import warm
from tests.crm import TOKEN, Crm
from tests.fleet import JOBQ, Fleet
from tests.services import wait_until

PASSWORD = "canary-51d2f8-dsn"
QUEUES = "sync:2,replication:50"
SOON = {"max_attempts": 30, "initial": "PT0.1S", "maximum": "PT0.2S"}


@dataclass
class Stage:
    """The fleet, and all that Syncs can reach."""

    fleet: Fleet
    crm: Crm
    folder: Path
    warehouse: str
    """URL of a PostgreSQL database that is not jobq's."""
    printed: list[str] = field(default_factory=list)
    """What commands wrote."""

    def __post_init__(self) -> None:
        self.jobq = self.fleet.jobq

    # --- ends of Syncs -----------------------------------------------------------------------------------------

    def source(self, **config: Any) -> dict[str, Any]:
        """The customers of the service, page by page."""
        usual = {
            "url": f"{self.crm.url}/customers", "auth": {"type": "bearer", "secret": "token"}, "records": "items",
            "pagination": {"type": "page", "more": "more"}, "page_size": 20, "size_param": "size",
            "since_param": "since", "state": "changed", "entity_url": f"{self.crm.url}/customers/{{key}}",
        }  # fmt: skip
        return {"type": "http", "config": {**usual, **config}, "secrets": {"token": "crm-token"}}

    def service(self, name: str, **more: Any) -> dict[str, Any]:
        """A target of the service."""
        config = {
            "url": f"{self.crm.url}/{name}/{{key}}", "auth": {"type": "bearer", "secret": "token"},
            "external_id": "number",
        }  # fmt: skip
        return {"name": name, "type": "http", "config": config, "secrets": {"token": "crm-token"}, **more}

    def table(self, name: str, **more: Any) -> dict[str, Any]:
        """A new table of the warehouse, as a target."""
        self.execute(f"CREATE TABLE {name} (id text PRIMARY KEY, name text, orders integer)")
        config = {"secret": "dsn", "table": name, "key": "id"}
        return {"name": name, "type": "sql", "config": config, "secrets": {"dsn": "warehouse"}, **more}

    def execute(self, statement: str) -> list[Any]:
        """A statement in the warehouse."""
        with psycopg.connect(self.warehouse, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self, table: str) -> list[Any]:
        """What a table of the warehouse has."""
        return self.execute(f"SELECT id, name, orders FROM {table} ORDER BY id")

    # --- Syncs -------------------------------------------------------------------------------------------------

    def start(self, domain: str, targets: list[Any], *, retry: Any = None, **spec: Any) -> Job:
        """Enqueue a Sync of the service's customers."""
        spec = {"domain": domain, "source": self.source(), "mapping": MAPPING, "targets": targets, **spec}
        return self.jobq.enqueue(spec, kind="SYNC", retry=retry or SOON)

    def ended(self, job_id: UUID, timeout: float = 60) -> Job:
        """The Sync at its end."""
        try:
            return self.jobq.wait(job_id, timeout=timeout)
        except BaseException:
            print(self.jobq.why(job_id), self.jobq.fanout(job_id), self.fleet.logs())
            raise

    def sync(self, domain: str, targets: list[Any], **spec: Any) -> Job:
        """A Sync from its beginning to its end."""
        return self.ended(self.start(domain, targets, **spec).id)

    def command(self, *arguments: str, code: int = 0) -> str:
        """What a command prints."""
        done = warm().run(list(arguments), self.fleet.environment, self.fleet.folder, "")
        self.printed += [done.out, done.err]
        assert done.code == code, done.out + done.err
        return done.out

    def exports(self, job_id: UUID) -> list[Any]:
        """The reports of all children."""
        found, cursor = [], None
        while True:
            page = self.jobq.exports(job_id, limit=200, cursor=cursor)
            found += page.items
            if (cursor := page.next_cursor) is None:
                return found

    def reached(self, job_id: UUID, children: int) -> None:
        """Wait until so many children of a Sync have been completed."""
        wait_until(lambda: self.jobq.fanout(job_id).completed >= children, 30, interval=0.02, what="children to end")

    def worker_of(self, job_id: UUID) -> int | None:
        """The process that runs a job."""
        worker = self.jobq.get(job_id).worker_id
        return next((int(one.name.rpartition(":")[2]) for one in self.jobq.workers.list() if one.id == worker), None)

    def kill(self, pid: int) -> None:
        """SIGKILL a worker of the fleet, and start another."""
        process = next(process for process in self.fleet.processes if process.pid == pid)
        process.kill()
        process.wait()
        self.fleet.start(str(JOBQ), "worker", "-Q", QUEUES)


MAPPING = {"id": {"path": "id", "type": "string"}, "name": "join(' ', [first, last])", "orders": "orders"}


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: services.Postgres,
    postgres_template: str,
    redis_session: services.Redis,
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("sync")
    (folder / "area").mkdir()
    postgres_server.start()
    redis_session.start()
    redis_session.flush()
    own, warehouse = postgres_server.create(postgres_template), postgres_server.create()
    policy = {"probe_networks": ["127.0.0.0/8"], "areas": [str(folder / "area")]}
    settings = {"lease": 20, "renew_every": 1, "drain_timeout": 5, "secret_key": "a key for tests, long enough"}
    with (
        Crm() as crm,
        Fleet(folder, postgres_server.url(own), redis_session.url, policy=policy, **settings) as fleet,
    ):
        stage = Stage(fleet, crm, folder / "area", postgres_server.url(warehouse))
        stage.jobq.secrets.set("crm-token", TOKEN)
        stage.jobq.secrets.set("warehouse", stage.warehouse.replace("postgres@", f"postgres:{PASSWORD}@"))
        fleet.scheduler()
        for _ in range(2):
            fleet.worker(QUEUES)
        yield stage
    postgres_server.drop(own)
    postgres_server.drop(warehouse)


def customers(count: int, **more: Any) -> list[dict[str, Any]]:
    """Customers 0, 1, …; every fifth is not active, every third lives in NL."""
    return [
        {"id": number, "first": f"Ada{number}", "last": "Lovelace", "orders": number % 7, "active": number % 5 != 0,
         "country": "NL" if number % 3 == 0 else "BE", "changed": "2026-01-01T00:00:00Z", **more}
        for number in range(count)
    ]  # fmt: skip


def mapped(found: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """What MAPPING makes of customers, in the order of a text column."""
    return sorted((str(one["id"]), f"{one['first']} {one['last']}", one["orders"]) for one in found)


def keys(writes: list[Any]) -> Counter[str]:
    """How often each key was written, refusals aside."""
    return Counter(key for _, key, _, status in writes if status < 300)


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_customers_go_from_a_service_to_a_table_a_service_and_an_area_row_by_row(stage: Stage) -> None:
    everyone = customers(90)
    stage.crm.reset(everyone, refused={"shop": ["33"]})
    targets = [
        stage.table("whole"),
        stage.service("shop", conditions=["country == 'NL'"], mapping={"label": "name"}),
        {"name": "files", "type": "csv", "config": {"area": f"{stage.folder}/whole", "columns": ["id", "name"]}},
    ]
    mapping = {**MAPPING, "country": "country"}
    targets[0]["mapping"] = {"id": "id", "name": "name", "orders": "orders"}
    job = stage.sync("whole", targets, conditions=["active"], mapping=mapping)

    taken = [one for one in everyone if one["active"]]
    dutch = [one for one in taken if one["country"] == "NL" and one["id"] != 33]
    assert (job.status, job.reason) == (Status.FAILED, Reason.PARTIAL)
    assert job.message == f"1 of {3 * len(taken)} replications failed"
    assert stage.rows("whole") == mapped(taken)
    assert stage.crm.entities("shop") == {str(one["id"]): {"label": f"{one['first']} Lovelace"} for one in dutch}
    files = {
        path.stem: next(csv.DictReader(path.read_text().splitlines())) for path in (stage.folder / "whole").iterdir()
    }
    assert files == {key: {"id": key, "name": name} for key, name, _ in mapped(taken)}

    counts = stage.jobq.fanout(job.id)
    assert (counts.read, counts.filtered, counts.new, counts.total) == (90, 18, 72, 216)
    assert (counts.completed, counts.skipped, counts.failed) == (72 * 2 + len(dutch), 72 - len(dutch) - 1, 1)
    assert counts.targets["whole"].success == counts.targets["files"].success == 72
    reports = {(one.target, one.key): one for one in stage.exports(job.id)}
    assert reports["shop", "3"].external_id == "shop-3"
    refused = reports["shop", "33"]
    assert (refused.status, refused.error_class, refused.reported) == ("fail", "InvalidPayload", True)
    assert "no such street" in (refused.message or "")
    assert '"you": "Bearer ***"' in (refused.message or ""), "the service repeats the token"
    assert stage.jobq.get(refused.job_id).attempt == 1, "what a target refuses is not tried again"


def test_a_table_goes_into_another_database_and_only_what_is_newer_goes_again(stage: Stage) -> None:
    stage.execute("CREATE TABLE sold (id integer PRIMARY KEY, price numeric(8, 2), at timestamptz)")
    stage.execute(
        "INSERT INTO sold SELECT n, n * 1.5, timestamptz '2026-01-01' + n * interval '1 s' FROM generate_series(1, 120) n"
    )
    file = stage.folder / "sold.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE sold (id INTEGER PRIMARY KEY, price TEXT)")
    source = {
        "type": "sql", "secrets": {"dsn": "warehouse"},
        "config": {"secret": "dsn", "table": "sold", "key": "id", "state_column": "at"},
    }  # fmt: skip
    target = {"name": "copy", "type": "sql", "config": {"url": f"sqlite:///{file}", "table": "sold", "key": "id"}}
    more = {"source": source, "mapping": {"id": "id", "price": "price"}, "mode": "incremental", "batch_size": 25}
    assert stage.sync("sold", [target], **more).status is Status.COMPLETED
    stage.execute("UPDATE sold SET price = 0.01, at = '2026-02-01' WHERE id = 7")
    again = stage.sync("sold", [target], **more)

    assert stage.jobq.fanout(again.id).total == 1
    with closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT id, price FROM sold ORDER BY id").fetchall()
    assert found == [(n, str(price)) for n, price in stage.execute("SELECT id, price FROM sold ORDER BY id")]
    assert found[6] == (7, "0.01")


def test_a_file_becomes_a_file_without_any_child(stage: Stage) -> None:
    lines = [json.dumps(one) for one in customers(50)]
    (stage.folder / "in.jsonl").write_text("\n".join([*lines[:20], "{broken", *lines[20:]]) + "\n")
    source = {"type": "jsonl", "config": {"path": f"{stage.folder}/in.jsonl"}}
    target = {"name": "out", "type": "csv", "config": {"area": f"{stage.folder}/out"}}
    job = stage.sync("copied", [target], source=source, conditions=["active"], batch_size=7)

    with (stage.folder / "out" / "copied.csv").open(newline="") as file:
        rows = [(row["id"], row["name"], int(row["orders"])) for row in csv.DictReader(file)]
    assert sorted(rows) == mapped([one for one in customers(50) if one["active"]])
    assert not stage.jobq.children(job.id).items
    counts = stage.jobq.fanout(job.id)
    assert (counts.total, counts.filtered, counts.invalid, counts.targets["out"].success) == (0, 10, 1, 40)
    assert job.reason is Reason.PARTIAL
    [problem] = stage.jobq.problems(job.id)
    assert "in.jsonl, line 21" in problem.entity
    assert sorted(path.name for path in (stage.folder / "out").iterdir()) == ["copied.csv"]


# --- kills -----------------------------------------------------------------------------------------------------------


def test_a_reading_worker_that_is_killed_again_and_again_makes_each_child_once(stage: Stage) -> None:
    everyone = customers(300)
    stage.crm.reset(everyone, page_seconds=0.25)
    targets = [stage.table("reread"), stage.service("reread-shop", after=["reread"])]
    job = stage.start("reread", targets, batch_size=20)
    for pages in (2, 5, 8):
        wait_until(lambda pages=pages: len(stage.crm.pages()) >= pages, 30, interval=0.02, what="some pages")
        stage.crm.set(page_seconds=2)  # it must not have read all until it is killed
        stage.kill(wait_until(lambda: stage.worker_of(job.id), 30, interval=0.02, what="a worker to read"))
        stage.crm.set(page_seconds=0.25)
    done = stage.ended(job.id)

    lost = [attempt for attempt in stage.jobq.attempts(job.id) if attempt.outcome == "LOST"]
    assert len(lost) >= 3, "it was killed while it did not read"
    assert done.status is Status.COMPLETED
    children = stage.fleet.ask(
        "SELECT entity_key, target, count(*) FROM jobq_jobs WHERE parent_id = :id GROUP BY 1, 2", id=job.id
    )
    assert len(children) == 600
    assert {count for _, _, count in children} == {1}
    assert stage.rows("reread") == mapped(everyone)
    assert stage.crm.entities("reread-shop").keys() == {str(number) for number in range(300)}
    assert len(stage.crm.pages()) <= 15 + 3 * 3, "it went on behind its last batch"


def test_killed_replicating_workers_lose_no_entity_and_repeat_themselves_recognizably(stage: Stage) -> None:
    everyone = customers(400)
    stage.crm.reset(everyone, seconds={"patient": 0.25})
    job = stage.start("patient", [stage.service("patient")])
    for children in (20, 120, 220):
        stage.reached(job.id, children)
        busiest = (
            "SELECT w.name FROM jobq_workers w JOIN jobq_jobs j ON j.worker_id = w.id WHERE j.parent_id = :id "
            "GROUP BY w.id, w.name ORDER BY count(*) DESC LIMIT 1"
        )
        [victim] = wait_until(lambda busiest=busiest: stage.fleet.ask(busiest, id=job.id), what="a child to run")  # type: ignore[misc]
        stage.kill(int(victim.name.rpartition(":")[2]))
    done = stage.ended(job.id)

    assert done.status is Status.COMPLETED
    assert len(stage.crm.entities("patient")) == 400
    by_key = {(key, idempotency_key) for _, key, idempotency_key, _ in stage.crm.writes("patient")}
    assert by_key == {(one.key, str(one.job_id)) for one in stage.exports(job.id)}
    lost = stage.fleet.ask(
        "SELECT count(*) FROM jobq_attempts a JOIN jobq_jobs j ON j.id = a.job_id "
        "WHERE j.parent_id = :id AND a.outcome = 'LOST'", id=job.id,
    )  # fmt: skip
    assert lost[0][0] >= 3


# --- pause, resume, cancel, retry ------------------------------------------------------------------------------------


def state(stage: Stage, job_id: UUID) -> tuple[Status, Reason]:
    job = stage.jobq.get(job_id)
    return job.status, job.reason


def nothing_comes(seconds: float, look: Callable[[], int]) -> bool:
    """Did the number stay what it was, for so long?"""
    before, ends = look(), time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > ends or look() != before, seconds + 5, interval=0.1, what="time to pass")
    return look() == before


def test_nothing_is_sent_while_a_sync_is_paused_nor_after_it_was_canceled(stage: Stage) -> None:
    stage.crm.reset(customers(2000), seconds={"held": 0.2})
    at_once = 20

    def sent() -> int:
        return len(stage.crm.writes("held"))

    job = stage.start("held", [stage.service("held", concurrency=at_once)])
    wait_until(lambda: state(stage, job.id) == (Status.RUNNING, Reason.FANNED_OUT), 30, what="all to be read")
    stage.reached(job.id, 40)
    stage.command("job", "pause", str(job.id))
    before = sent()
    wait_until(lambda: state(stage, job.id) == (Status.RUNNING, Reason.PAUSED), 10, what="it to be paused")
    assert sent() - before <= at_once, "a child started after the command had returned"
    assert nothing_comes(1.5, sent)
    paused = sent()
    assert stage.jobq.fanout(job.id).completed == paused, "those that ran were let end"
    assert stage.jobq.fanout(job.id).running == 0

    stage.command("job", "resume", str(job.id))
    stage.reached(job.id, paused + 40)
    stage.command("job", "cancel", str(job.id))
    before = sent()
    done = stage.ended(job.id, 20)
    assert (done.status, done.reason) == (Status.CANCELED, Reason.BY_USER)
    assert sent() - before <= at_once
    assert nothing_comes(1.0, sent)
    assert max(keys(stage.crm.writes("held")).values()) == 1
    counts = stage.jobq.fanout(job.id)
    assert (counts.completed, counts.completed + counts.canceled) == (sent(), 2000)
    assert not stage.fleet.ask("SELECT 1 FROM jobq_jobs WHERE parent_id = :id AND finished_at IS NULL", id=job.id)


def test_a_sync_that_is_paused_while_it_reads_stops_reading_and_goes_on_behind_its_last_batch(stage: Stage) -> None:
    stage.crm.reset(customers(200), page_seconds=0.2)
    job = stage.start("halfway", [stage.table("halfway")])
    wait_until(lambda: len(stage.crm.pages()) >= 3, 20, interval=0.02, what="some pages")
    stage.crm.set(page_seconds=2)  # it must not have read all until it is told
    stage.jobq.pause(job.id)
    wait_until(lambda: state(stage, job.id) == (Status.RUNNING, Reason.PAUSED), 10, what="it to be paused")
    read = len(stage.crm.pages())
    assert nothing_comes(1.0, lambda: len(stage.crm.pages()) + len(stage.rows("halfway")))
    assert read < 10
    assert stage.jobq.get(job.id).worker_id is None, "it holds no worker slot"
    stage.crm.set(page_seconds=0)
    stage.jobq.resume(job.id)
    done = stage.ended(job.id)

    assert (done.status, done.failures) == (Status.COMPLETED, 0)
    assert stage.rows("halfway") == mapped(customers(200))
    assert len(stage.crm.pages()) <= 10 + 2, "it went on behind its last batch"


def test_a_target_that_asks_for_patience_is_spared_and_others_go_on(stage: Stage) -> None:
    stage.crm.reset(customers(40), limit={"slow": 12})
    job = stage.start("spared", [stage.service("slow"), stage.service("quick")])
    done = stage.ended(job.id)

    assert done.status is Status.COMPLETED
    slow, quick = stage.crm.writes("slow"), stage.crm.writes("quick")
    assert keys(slow) == keys(quick) == Counter(str(number) for number in range(40))
    assert max(at for at, *_ in quick) < max(at for at, *_ in slow) - 1, "the other target had to wait, too"
    assert {status for *_, status in slow} == {201, 429}
    [(failures, requeues)] = stage.fleet.ask(
        "SELECT max(failures), sum(requeues) FROM jobq_jobs WHERE parent_id = :id", id=job.id
    )
    assert failures == 0
    assert requeues == sum(status == 429 for *_, status in slow) > 0
    assert stage.jobq.fanout(job.id).targets["slow"].success == 40


def test_only_the_failed_children_are_retried_once_the_target_is_mended(stage: Stage) -> None:
    stage.crm.reset(customers(30), refused={"picky": ["3", "5", "8"]})
    chain = [stage.service("picky"), stage.table("behind", after=["picky"])]
    job = stage.sync("mended", chain)
    assert job.reason is Reason.PARTIAL
    assert len(stage.rows("behind")) == 27
    held_up = {one.key for one in stage.exports(job.id) if one.job_reason is Reason.UPSTREAM_FAILED}
    assert held_up == {"3", "5", "8"}
    stage.crm.set(refused={})
    before = len(stage.crm.writes("picky"))
    [new] = stage.command("job", "retry", str(job.id), "--wait").split()[:1]
    again = stage.jobq.get(UUID(new))

    assert (again.retry_of, again.status) == (job.id, Status.COMPLETED)
    assert sorted(key for _, key, *_ in stage.crm.writes("picky")[before:]) == ["3", "5", "8"]
    assert stage.rows("behind") == mapped(customers(30))
    assert {(one.key, one.target) for one in stage.exports(again.id)} == {
        (key, target) for key in held_up for target in ("picky", "behind")
    }
    reported = json.loads(stage.command("job", "exports", new, "--json"))["items"]
    assert {one["status"] for one in reported} == {"success"}


# --- what is read ----------------------------------------------------------------------------------------------------


def test_an_incremental_run_sends_only_what_has_changed(stage: Stage) -> None:
    everyone = customers(30)
    stage.crm.reset(everyone)
    targets = [stage.service("news")]
    stage.sync("news", targets, mode="incremental")
    assert stage.jobq.sync_states.get("news").state == "2026-01-01T00:00:00Z"

    everyone[4] |= {"orders": 99, "changed": "2026-03-01T00:00:00Z"}
    everyone.append({**everyone[5], "id": 30, "changed": "2026-03-02T00:00:00Z"})
    stage.crm.reset(everyone)
    before = len(stage.crm.writes("news"))
    job = stage.sync("news", targets, mode="incremental")
    assert stage.crm.pages()[0][1]["since"] == "2026-01-01T00:00:00Z"
    assert sorted(key for _, key, *_ in stage.crm.writes("news")[before:]) == ["30", "4"]
    counts = stage.jobq.fanout(job.id)
    assert (counts.new, counts.updated, counts.targets["news"].updated) == (1, 1, 1)
    assert stage.jobq.sync_states.get("news").state == "2026-03-02T00:00:00Z"

    # A run of its own date reads again what is that new, writes nothing twice, and leaves the state.
    stage.crm.reset(everyone)
    job = stage.sync("news", targets, mode="incremental", override_start_date="2026-02-01T00:00:00Z")
    assert "2026-02-01" in stage.crm.pages()[0][1]["since"]
    assert (stage.jobq.fanout(job.id).existing, stage.jobq.fanout(job.id).total) == (2, 0)
    left = stage.jobq.sync_states.get("news")
    assert (left.state, left.job_id == job.id) == ("2026-03-02T00:00:00Z", False)

    stage.command("sync", "state", "reset", "news")
    stage.crm.reset(everyone)
    job = stage.sync("news", targets, mode="incremental")
    assert "since" not in stage.crm.pages()[0][1]
    assert (stage.jobq.fanout(job.id).read, stage.jobq.fanout(job.id).total) == (31, 0)


def test_a_single_entity_is_read_and_sent_alone(stage: Stage) -> None:
    stage.crm.reset(customers(30))
    job = stage.sync("single", [stage.service("single")], entity="17")

    assert [key for _, key, *_ in stage.crm.writes("single")] == ["17"]
    assert stage.crm.pages() == []
    assert stage.jobq.fanout(job.id).read == 1
    with pytest.raises(Exception, match="No SYNC has read"):
        stage.jobq.sync_states.get("single")


def test_a_dry_run_shows_payloads_and_writes_nothing(stage: Stage) -> None:
    stage.crm.reset(customers(30))
    targets = [stage.service("dry", mapping={"label": "name"}, conditions=["orders > `3`"])]
    tables = ("jobq_entities", "jobq_watermarks", "jobq_sync_states", "jobq_fanouts")
    before = [stage.fleet.ask(f"SELECT count(*) FROM {table}")[0][0] for table in tables]
    job = stage.sync("dry", targets, dry_run=True)

    assert job.status is Status.COMPLETED
    assert [stage.fleet.ask(f"SELECT count(*) FROM {table}")[0][0] for table in tables] == before
    assert not stage.jobq.children(job.id).items
    assert stage.crm.writes("dry") == []
    shown = [json.loads(line) for line in stage.jobq.artifact(job.id, "preview.jsonl").splitlines()]
    assert len(shown) == 30
    assert shown[4] == {"entity": "4", "change": "new", "target": "dry", "payload": {"label": "Ada4 Lovelace"}}
    assert shown[0]["filtered"] is True


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"source": {"connector": "none"}}, "unknown_connector", "/spec/source/connector"),
        ({"source": {"type": "fax"}}, "unknown_connector", "/spec/source/type"),
        ({"conditions": ["active &&"]}, "invalid_expression", "/spec/conditions/0"),
        ({"mapping": {"name": "join(' ')"}}, "invalid_expression", "/spec/mapping/name"),
        ({"source": {"type": "jsonl", "config": {"path": "/etc/passwd"}}}, "area_not_allowed", "/spec/source/config/path"),
    ],
)  # fmt: skip
def test_a_sync_that_cannot_work_is_refused(stage: Stage, change: dict[str, Any], code: str, pointer: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - its code is looked at
        stage.start("refused", [stage.service("refused")], **change)
    assert (error.value.code, error.value.pointer) == (code, pointer)  # type: ignore[attr-defined]


def test_a_secret_that_is_missing_is_told_at_the_door_and_on_the_job(stage: Stage) -> None:
    stage.crm.reset(customers(3))
    target = {**stage.service("unknown"), "secrets": {"token": "nobody-knows"}}
    with pytest.raises(InvalidInput, match="no secret 'nobody-knows'") as error:
        stage.start("unknown", [target])
    assert error.value.pointer == "/spec/targets/0/secrets/token"

    stage.jobq.secrets.set("nobody-knows", TOKEN)
    stage.jobq.queues.pause("replication")
    job = stage.start("unknown", [target, stage.table("known")])
    wait_until(lambda: stage.jobq.fanout(job.id).total == 6, 20, what="the children")
    stage.jobq.secrets.remove("nobody-knows")
    stage.jobq.queues.resume("replication")
    assert stage.ended(job.id).reason is Reason.PARTIAL
    lost = [one for one in stage.exports(job.id) if one.target == "unknown"]
    assert {one.status for one in lost} == {"fail"}
    assert all("nobody-knows" in (one.message or "") for one in lost)
    assert stage.rows("known") == mapped(customers(3))


def test_a_source_that_cannot_be_reached_is_told_on_the_job_after_its_retries(stage: Stage) -> None:
    source = stage.source(url=f"http://127.0.0.1:{services.free_port()}/customers")
    job = stage.sync("away", [stage.service("away")], source=source, retry={**SOON, "max_attempts": 2})

    assert (job.status, job.reason, job.error_class) == (Status.FAILED, Reason.ERROR, "Unavailable")
    assert job.failures == 2
    assert "cannot be connected to" in (job.message or "")


def test_what_is_wrong_with_some_records_costs_only_those(stage: Stage) -> None:
    huge = {**customers(1)[0], "id": 1, "first": "x" * 5_000_000}
    twice = {**customers(3)[2], "last": "Byron"}
    late = {**customers(4)[3], "last": "Byron"}
    nameless = {**customers(1)[0], "id": None}
    wrong = {**customers(1)[0], "id": 9, "first": 17}
    stage.crm.reset([huge, customers(3)[2], twice, customers(4)[3], nameless, wrong, *customers(8)[4:], late])
    target = stage.table("odd")
    job = stage.sync("odd", [target], source=stage.source(page_size=5))

    assert job.reason is Reason.PARTIAL
    told = {(one.entity, one.error_class): one.message for one in stage.jobq.problems(job.id)}
    assert set(told) == {
        ("1", "MappingError"), ("2", "duplicate_key"), ("3", "duplicate_key"), ("record 5 of a batch", "MappingError"),
        ("9", "MappingError"),
    }  # fmt: skip
    assert "'name': the entity takes 5,000," in told["1", "MappingError"]
    assert "'name': join()" in told["9", "MappingError"]
    assert job.message == "5 of 11 entities could not be used"
    assert [key for key, _, _ in stage.rows("odd")] == ["2", "3", "4", "5", "6", "7"]
    assert stage.rows("odd")[0] == mapped([twice])[0], "of two in one batch the last one counts"

    stage.crm.reset([customers(2)[1], twice, late, *customers(8)[4:]])
    again = stage.ended(stage.jobq.retry(job.id).id)
    assert (again.status, stage.jobq.fanout(again.id).read) == (Status.COMPLETED, 7), "what was mended is read again"
    assert stage.rows("odd") == mapped([customers(2)[1], twice, late, *customers(8)[4:]])


def test_a_malformed_line_of_a_csv_file_costs_only_itself(stage: Stage) -> None:
    lines = [f'{number},Ada{number},"Lovelace",{number % 7}' for number in range(40)]
    lines[11] = '11,Ada11,"Love'
    lines[20] = "20,Ada20"
    (stage.folder / "odd.csv").write_text("\r\n".join(["id,first,last,orders", *lines]) + "\r\n")
    source = {"type": "csv", "config": {"path": f"{stage.folder}/odd.csv"}}
    mapping = {**MAPPING, "orders": {"path": "orders", "type": "integer"}}
    job = stage.sync("lines", [stage.table("lines")], source=source, mapping=mapping)

    assert job.reason is Reason.PARTIAL
    assert [one.entity.rpartition("/")[2] for one in stage.jobq.problems(job.id)] == [
        "odd.csv, line 13",
        "odd.csv, line 22",
    ]
    good = [{"id": n, "first": f"Ada{n}", "last": "Lovelace", "orders": n % 7} for n in range(40) if n not in {11, 20}]
    assert stage.rows("lines") == mapped(good)


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_any_table_log_or_message(stage: Stage) -> None:
    """All tests before this one have used them, and a service has repeated one in its refusals."""
    [refused] = [
        one for one in stage.jobq.list(limit=200, statuses=frozenset({Status.FAILED})).items if one.target == "shop"
    ]
    stage.command("job", "show", str(refused.id))
    stage.command("job", "show", str(refused.parent_id), "--json")
    stage.command("job", "logs", str(refused.parent_id))
    stage.command("job", "exports", str(refused.parent_id), "--json")
    stage.command("secret", "list", "--json")
    stage.command("connector", "list", "--json")
    told = "\n".join(stage.printed) + "\n".join(file.read_text() for file in stage.fleet.folder.glob("*.log"))
    assert "crm-token" in told

    rows = 0
    with psycopg.connect(stage.jobq.settings.database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            # Bytes as they are: in hex, nothing would be found in them.
            for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {table} t".encode()):
                rows += 1
                told += json.dumps({name: _readable(value) for name, value in row.items()})
    assert len(tables) > 15
    assert rows > 3000
    for secret in (TOKEN, PASSWORD):
        assert secret not in told
        assert secret.removeprefix("canary-") not in told


def _readable(value: Any) -> Any:
    """Bytes, which PostgreSQL writes as hex in JSON, as text."""
    if isinstance(value, str) and value.startswith("\\x"):
        return bytes.fromhex(value[2:]).decode("latin-1")
    return value
