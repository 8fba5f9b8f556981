"""Every built-in connector holds the contract that plugin authors get with jobq; and the contract refuses what does not."""

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from jobq.connectors import Access, Batch, Entity, Read, Unavailable, Written
from jobq.settings import Policy
from jobq.specs import Spec
from jobq.testing import SourceContract, TargetContract, read_all
from jobq.testing.targets import HOSTILE
from jobq.validation import parse
from tests.peers import TOKEN, HttpPeer
from workers.connectors.file_sources import CsvSource, JsonlSource
from workers.connectors.file_targets import CsvTarget, JsonlTarget
from workers.connectors.http import HttpSource, HttpTarget
from workers.connectors.sql import SqlSource, SqlTarget

LOCAL = Policy(probe_networks=["127.0.0.0/8"])
ITEMS = [
    {"id": f"i{number}", "name": name, "changed": f"2026-01-0{number}T00:00:00Z"}
    for number, name in enumerate(["one", "zwei", "три", "quote\"'", "line\nbreak", "", "a,b"], start=1)
]


def made(kind: Any, config: Mapping[str, Any], access: Access) -> Any:
    """A connector as a worker makes it."""
    return kind(parse(kind.config, config), access)


# --- http ------------------------------------------------------------------------------------------------------------


class OverHttp:
    secrets: ClassVar[Sequence[str]] = (TOKEN,)

    @pytest.fixture(autouse=True)
    def _peer(self) -> Iterator[None]:
        self.log: list[str] = []
        with HttpPeer(items=[dict(item) for item in ITEMS], token=TOKEN) as self.peer:
            yield

    def logged(self) -> str:
        return "\n".join(self.log)

    def _access(self, token: str = TOKEN) -> Access:
        return Access(LOCAL, {"token": token}, self.log.append)

    def _auth(self) -> dict[str, Any]:
        return {"auth": {"type": "bearer", "secret": "token"}, "secrets": {"token": "crm"}}


WAYS: dict[str, dict[str, Any]] = {
    "page": {"pagination": {"type": "page"}, "size_param": "limit"},
    "page_with_more": {"pagination": {"type": "page", "more": "next"}, "page_size": 3, "size_param": "limit"},
    "offset": {"pagination": {"type": "offset"}},
    "cursor": {"pagination": {"type": "cursor", "next": "next"}, "page_size": 2, "size_param": "limit"},
    "link_header": {"pagination": {"type": "link"}, "page_size": 4, "size_param": "limit"},
    "link_in_body": {"pagination": {"type": "link", "next": "url"}},
}


@pytest.mark.parametrize("way", WAYS)
class TestHttpSource(OverHttp, SourceContract):
    rereads = 1

    @pytest.fixture(autouse=True)
    def _way(self, way: str) -> None:
        self.way = WAYS[way]

    def source(self) -> HttpSource:
        config = {
            "url": f"{self.peer.url}/items", "records": "data", "since_param": "since", "state": "changed",
            "entity_url": f"{self.peer.url}/entities/{{key}}", "entity_record": "item", **self._auth(), **self.way,
        }  # fmt: skip
        source: HttpSource = made(HttpSource, config, self._access())
        return source

    def expected(self) -> list[dict[str, Any]]:
        return self.peer.items

    def change(self) -> dict[str, Any]:
        changed = {"id": "i3", "name": "drei", "changed": "2026-02-01T00:00:00Z"}
        self.peer.items = [item for item in self.peer.items if item["id"] != "i3"] + [changed]
        return changed

    def entity(self) -> tuple[str, dict[str, Any]]:
        return "i2", ITEMS[1]

    def broken_source(self) -> HttpSource:
        self.peer.token = "another"
        return self.source()


class TestHttpTarget(OverHttp, TargetContract):
    def target(self) -> HttpTarget:
        config = {"url": f"{self.peer.url}/entities/{{key}}", "external_id": "number", **self._auth()}
        target: HttpTarget = made(HttpTarget, config, self._access())
        return target

    def stored(self) -> Mapping[str, Any]:
        return self.peer.entities

    def broken_target(self) -> HttpTarget:
        self.peer.token = "another"
        return self.target()


# --- sql -------------------------------------------------------------------------------------------------------------

PASSWORD = "pa55word-of-the-database"


class OnDatabase:
    """Two tables in a database of the test's own; PostgreSQL asks for a password."""

    secrets: ClassVar[Sequence[str]] = (PASSWORD,)

    @pytest.fixture(autouse=True)
    def _database(self, database_url: str, tmp_path: Path) -> Iterator[None]:
        self.policy = Policy(probe_networks=["127.0.0.0/8"], areas=[str(tmp_path)])
        self.url = database_url
        self.engine = sa.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
        self.items = sa.Table(
            "items", sa.MetaData(), sa.Column("id", sa.String(400), primary_key=True), sa.Column("name", sa.Text),
            sa.Column("changed", sa.DateTime(timezone=True)), sa.Column("price", sa.Numeric(10, 2)),
        )  # fmt: skip
        self.entities = sa.Table(
            "entities", sa.MetaData(), sa.Column("id", sa.String(400), primary_key=True), sa.Column("text", sa.Text)
        )
        self.items.create(self.engine)
        self.entities.create(self.engine)
        with self.engine.begin() as db:
            for number in range(1, 8):
                db.execute(sa.insert(self.items).values(self._item(number)))
        yield
        self.engine.dispose()

    def _item(self, number: int) -> dict[str, Any]:
        at = None if number == 7 else datetime(2026, 1, 1 + number // 2, tzinfo=UTC)  # some share an instant
        return {"id": f"i{number}", "name": f"näme '{number}'", "changed": at, "price": Decimal("12.50")}

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        at = row["changed"]
        text = None if at is None else at.isoformat() if self.url.startswith("postgresql") else at.isoformat()[:19]
        return {**row, "changed": text, "price": "12.50"}

    def _access(self) -> Access:
        return Access(self.policy, {"dsn": self.url.replace("postgres@", f"postgres:{PASSWORD}@"), "pw": PASSWORD})


class TestSqlSource(OnDatabase, SourceContract):
    rereads = 2

    def source(self) -> SqlSource:
        config = {"secret": "dsn", "secrets": {"dsn": "d"}, "table": "items", "key": "id", "state_column": "changed"}
        source: SqlSource = made(SqlSource, config, self._access())
        return source

    def expected(self) -> list[dict[str, Any]]:
        return [self._record(self._item(number)) for number in range(1, 8)]

    def change(self) -> dict[str, Any]:
        row = self._item(1) | {"name": "changed", "changed": datetime(2026, 2, 1, tzinfo=UTC)}
        with self.engine.begin() as db:
            db.execute(sa.update(self.items).where(self.items.c.id == "i1").values(row))
        return self._record(row)

    def entity(self) -> tuple[str, dict[str, Any]]:
        return "i2", self._record(self._item(2))

    def broken_source(self) -> SqlSource:
        with self.engine.begin() as db:
            db.execute(sa.text("DROP TABLE items"))
        return self.source()


class TestSqlQuerySource(TestSqlSource):
    """The same of a query: the driver's own types, and a colon that is no parameter."""

    def source(self) -> SqlSource:
        query = "SELECT id, name, changed, price FROM items WHERE name <> ':nobody' AND name NOT LIKE '%z%'; "
        config = {"secret": "dsn", "secrets": {"dsn": "d"}, "query": query, "key": "id", "state_column": "changed"}
        source: SqlSource = made(SqlSource, config, self._access())
        return source

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.url.startswith("postgresql"):
            return super()._record(row)
        at = row["changed"]
        return {**row, "changed": at and at.isoformat(" ")[:19] + ".000000", "price": 12.5}


class TestSqlTarget(OnDatabase, TargetContract):
    def target(self) -> SqlTarget:
        config = {"secret": "dsn", "secrets": {"dsn": "d"}, "table": "entities", "key": "id"}
        target: SqlTarget = made(SqlTarget, config, self._access())
        return target

    def stored(self) -> Mapping[str, Any]:
        with self.engine.connect() as db:
            return {row["id"]: dict(row) for row in db.execute(sa.select(self.entities)).mappings()}

    def broken_target(self) -> SqlTarget:
        with self.engine.begin() as db:
            db.execute(sa.text("DROP TABLE entities"))
        return self.target()


def test_the_types_of_postgresql_survive_a_copy(postgres_url: str) -> None:
    columns = (
        "id uuid PRIMARY KEY, at timestamptz, day date, price numeric(12, 4), raw bytea, doc jsonb, tags text[], n bigint, "
        "is_on boolean, span interval"
    )
    engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    access = Access(LOCAL)
    row = (
        "'12345678-1234-5678-1234-567812345678', '2026-01-02 03:04:05.678+02', '2026-01-02', 12.5, '\\x00ff', "
        "'{\"a\": [1, null]}', '{x,\"y z\"}', 9007199254740993, true, '90 minutes'"
    )
    with engine.begin() as db:
        for table in ("one", "two"):
            db.exec_driver_sql(f"CREATE TABLE {table} ({columns})")
        db.exec_driver_sql(f"INSERT INTO one VALUES ({row})")
        db.exec_driver_sql(f"INSERT INTO one VALUES ('{'0' * 32}')")

    async def copy() -> list[Written]:
        source = made(SqlSource, {"url": postgres_url, "table": "one", "key": "id", "state_column": "at"}, access)
        target = made(SqlTarget, {"url": postgres_url, "table": "two", "key": "id"}, access)
        records = [record async for batch in source.read(Read()) for record in batch.records]
        written = [await target.write(Entity(record["id"], record, "job")) for record in records * 2]
        await source.close()
        await target.close()
        return written

    assert [written.created for written in asyncio.run(copy())] == [True, True, False, False]
    with engine.connect() as db:
        assert db.exec_driver_sql("SELECT * FROM one EXCEPT SELECT * FROM two").all() == []
        assert db.exec_driver_sql("SELECT count(*) FROM two WHERE doc IS NULL").scalar() == 1
    engine.dispose()


def test_a_statement_that_takes_too_long_is_ended(postgres_url: str) -> None:
    config = {"url": postgres_url, "query": "SELECT 1 AS id, pg_sleep(30)", "key": "id", "timeout": 0.2}
    with pytest.raises(Unavailable, match="statement timeout"):
        read_all(made(SqlSource, config, Access(LOCAL)))


# --- files -----------------------------------------------------------------------------------------------------------


class OnDisk:
    @pytest.fixture(autouse=True)
    def _area(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "area"
        self.folder.mkdir()
        self.access = Access(Policy(areas=[str(tmp_path / "area")]))


class TestJsonlSource(OnDisk, SourceContract):
    @pytest.fixture(autouse=True)
    def _files(self, _area: None) -> None:
        for name, part in {"a": ITEMS[:4], "b": [], "c": ITEMS[4:6], "d": ITEMS[6:]}.items():
            (self.folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in part))

    def source(self) -> JsonlSource:
        source: JsonlSource = made(JsonlSource, {"path": f"{self.folder}/*.jsonl"}, self.access)
        return source

    def expected(self) -> list[dict[str, Any]]:
        return ITEMS

    def change(self) -> dict[str, Any]:
        changed = {"id": "i7", "name": "sieben"}
        (self.folder / "d.jsonl").write_text(json.dumps(changed) + "\n")
        return changed

    def broken_source(self) -> JsonlSource:
        source: JsonlSource = made(JsonlSource, {"path": f"{self.folder}/missing.jsonl"}, self.access)
        return source


class TestJsonlSourceByName(TestJsonlSource):
    def source(self) -> JsonlSource:
        config = {"path": f"{self.folder}/*.jsonl", "incremental": "name"}
        source: JsonlSource = made(JsonlSource, config, self.access)
        return source

    def change(self) -> dict[str, Any]:
        changed = {"id": "i8", "name": "acht"}
        (self.folder / "e.jsonl").write_text(json.dumps(changed))
        return changed


class TestCsvSource(OnDisk, SourceContract):
    @pytest.fixture(autouse=True)
    def _files(self, _area: None) -> None:
        self._write("a.csv", ITEMS[:5])
        self._write("b.csv", ITEMS[5:6])
        self._write("c.csv", ITEMS[6:])

    def _write(self, name: str, items: Sequence[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, fieldnames=list(ITEMS[0]), delimiter=";")
            rows.writeheader()
            rows.writerows(items)

    def source(self) -> CsvSource:
        source: CsvSource = made(CsvSource, {"path": f"{self.folder}/*.csv", "delimiter": ";"}, self.access)
        return source

    def expected(self) -> list[dict[str, Any]]:
        return ITEMS

    def change(self) -> dict[str, Any]:
        changed = {**ITEMS[6], "name": "sieben"}
        self._write("c.csv", [changed])
        return changed

    def broken_source(self) -> CsvSource:
        source: CsvSource = made(CsvSource, {"path": "/etc/passwd"}, self.access)
        return source


class TestJsonlTarget(OnDisk, TargetContract):
    hostile = (*HOSTILE, "..", ".", "nul\x00", "+", "%2E.")

    def target(self) -> JsonlTarget:
        target: JsonlTarget = made(JsonlTarget, {"area": str(self.folder)}, self.access)
        return target

    def stored(self) -> Mapping[str, Any]:
        payloads = [json.loads(path.read_text()) for path in self.folder.iterdir()]
        return {payload["id"]: payload for payload in payloads}

    def broken_target(self) -> JsonlTarget:
        (self.folder / "file").write_text("")
        target: JsonlTarget = made(JsonlTarget, {"area": f"{self.folder}/file"}, self.access)
        return target

    def file(self, domain: str) -> list[dict[str, Any]] | None:
        path = self.folder / f"{domain}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None


class TestCsvTarget(OnDisk, TargetContract):
    def target(self) -> CsvTarget:
        target: CsvTarget = made(CsvTarget, {"area": str(self.folder)}, self.access)
        return target

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, strict=True))

    def stored(self) -> Mapping[str, Any]:
        return {row["id"]: row for path in self.folder.iterdir() for row in self._rows(path)}

    def broken_target(self) -> CsvTarget:
        target: CsvTarget = made(CsvTarget, {"area": "/etc"}, self.access)
        return target

    def file(self, domain: str) -> list[dict[str, Any]] | None:
        path = self.folder / f"{domain}.csv"
        return self._rows(path) if path.exists() else None


# --- the contract itself ---------------------------------------------------------------------------------------------


class Nothing(Spec):
    """Nothing to configure."""


class Numbers:
    """A source that is right: five numbers, the cursor is how many were read."""

    config = Nothing

    async def read(self, request: Read) -> AsyncIterator[Batch]:
        for start in range(request.cursor or 0, 5, request.batch_size):
            numbers = range(start, min(start + request.batch_size, 5))
            yield Batch([{"id": number} for number in numbers], start + len(numbers))

    async def close(self) -> None: ...


class Wrong:
    """Sources and targets that break the contract, each in one way."""

    class RepeatsAfterACursor(Numbers):
        async def read(self, request: Read) -> AsyncIterator[Batch]:
            async for batch in super().read(request):
                yield Batch(batch.records, batch.cursor - 1)

    class LosesAfterACursor(Numbers):
        async def read(self, request: Read) -> AsyncIterator[Batch]:
            async for batch in super().read(request):
                yield Batch(batch.records, batch.cursor + 1)

    class GivesLargeBatches(Numbers):
        async def read(self, request: Read) -> AsyncIterator[Batch]:
            yield Batch([{"id": number} for number in range(5)], 5)

    class GivesNoJson(Numbers):
        async def read(self, request: Read) -> AsyncIterator[Batch]:
            yield Batch([{"id": float("nan")}], 5)


class TestNumbers(SourceContract):
    kind: type[Numbers] = Numbers

    def source(self) -> Numbers:
        return self.kind()

    def expected(self) -> list[dict[str, Any]]:
        return [{"id": number} for number in range(5)]


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Wrong.RepeatsAfterACursor, TestNumbers.test_reading_on_from_every_cursor_gives_exactly_the_rest),
        (Wrong.LosesAfterACursor, TestNumbers.test_reading_on_from_every_cursor_gives_exactly_the_rest),
        (Wrong.GivesLargeBatches, TestNumbers.test_no_batch_is_larger_than_asked_for),
        (Wrong.GivesNoJson, TestNumbers.test_records_cursors_and_states_are_json_values),
    ],
)
def test_the_contract_refuses_a_wrong_source(kind: type[Numbers], test: Any) -> None:
    contract = TestNumbers()
    contract.kind = kind
    with pytest.raises((AssertionError, ValueError)):
        test(contract)


class Memory:
    """A target that is right."""

    config = Nothing
    held: ClassVar[dict[str, Any]] = {}

    async def write(self, entity: Entity) -> Written:
        is_new = entity.key not in self.held
        self.held[entity.key] = dict(entity.payload)
        return Written(f"memory:{entity.key}", is_new)

    async def close(self) -> None: ...


class TestMemory(TargetContract):
    kind: type[Memory] = Memory

    @pytest.fixture(autouse=True)
    def _empty(self) -> None:
        Memory.held.clear()

    def target(self) -> Memory:
        return self.kind()

    def stored(self) -> Mapping[str, Any]:
        return Memory.held


class WrongTarget:
    class WritesAnewEachTime(Memory):
        async def write(self, entity: Entity) -> Written:
            self.held[f"{entity.key}-{len(self.held)}"] = dict(entity.payload)
            return Written()

    class KeepsTheFirst(Memory):
        async def write(self, entity: Entity) -> Written:
            self.held.setdefault(entity.key, dict(entity.payload))
            return Written()

    class CleansKeys(Memory):
        async def write(self, entity: Entity) -> Written:
            self.held[entity.key.strip()] = dict(entity.payload)
            return Written()

    class NamesAnew(Memory):
        async def write(self, entity: Entity) -> Written:
            await super().write(entity)
            return Written(str(id(object())) + str(asyncio.get_running_loop().time()))


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (WrongTarget.WritesAnewEachTime, TestMemory.test_writing_twice_leaves_one_entity),
        (WrongTarget.KeepsTheFirst, TestMemory.test_a_changed_payload_arrives),
        (WrongTarget.CleansKeys, TestMemory.test_hostile_keys_and_texts_arrive_as_they_are),
        (WrongTarget.NamesAnew, TestMemory.test_the_external_id_is_stable),
    ],
)
def test_the_contract_refuses_a_wrong_target(kind: type[Memory], test: Any) -> None:
    Memory.held.clear()
    contract = TestMemory()
    contract.kind = kind
    with pytest.raises(AssertionError):
        test(contract)
