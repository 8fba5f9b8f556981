"""The SQL connector on SQLite: values, types, cursors, states; and the databases that it does not open."""

import asyncio
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from jobq.connectors import (
    Access,
    ConnectorError,
    Entity,
    InvalidConfiguration,
    InvalidCredentials,
    InvalidPayload,
    Read,
    Unavailable,
)
from jobq.errors import Forbidden, InvalidInput
from jobq.settings import Policy
from jobq.testing import read_all
from jobq.validation import parse
from workers.connectors import sql
from workers.connectors.database import _meaning
from workers.connectors.sql import SqlSource, SqlTarget, update_or_insert
from workers.connectors.sql_configs import SqlSourceConfig, SqlTargetConfig
from workers.connectors.values import as_json, mark, to_type, unmark

ID = UUID("12345678-1234-5678-1234-567812345678")
AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone(timedelta(hours=2)))
NAIVE = AT.replace(tzinfo=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "other.db"
    path.touch()
    return path


@pytest.fixture
def engine(file: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{file}")
    yield engine
    engine.dispose()


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(Policy(areas=[str(tmp_path)]))


def do(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as db:
        for statement in statements:
            db.exec_driver_sql(statement)


def source(file: Path, access: Access, **config: Any) -> SqlSource:
    return SqlSource(parse(SqlSourceConfig, {"url": f"sqlite:///{file}", "key": "id", **config}), access)


def write(config: dict[str, Any], access: Access, *entities: Entity) -> list[Any]:
    async def run() -> list[Any]:
        target = SqlTarget(parse(SqlTargetConfig, config), access)
        try:
            return [await target.write(entity) for entity in entities]
        finally:
            await target.close()

    return asyncio.run(run())


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("12.50"), "12.50"), (Decimal("NaN"), None), (math.inf, None), (1.5, 1.5), (True, True), (10**30, 10**30),
        (AT, "2026-01-02T01:04:05.678000+00:00"), (NAIVE, "2026-01-02T03:04:05.678000"),
        (date(2026, 1, 2), "2026-01-02"), (time(3, 4), "03:04:00"), (timedelta(minutes=1), 60.0),
        (ID, str(ID)), (b"\x00\xff", "AP8="), (memoryview(b"ab"), "YWI="),
        ({"a": [Decimal(1), {2}]}, {"a": ["1", [2]]}), (None, None),
    ],
)  # fmt: skip
def test_what_a_driver_returns_becomes_json(value: Any, expected: Any) -> None:
    assert as_json(value) == expected


@pytest.mark.parametrize(
    "value", [AT, NAIVE, date(2026, 1, 2), time(3), Decimal("1.20"), ID, b"\xff", 7, "text", 1.5, None]
)
def test_a_cursor_holds_the_very_value(value: Any) -> None:
    again = unmark(json.loads(json.dumps(mark(value))))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("value", [{"decimal": "x"}, {"other": "x"}, {"date": 7}, {"date": "soon"}])
def test_a_cursor_that_was_made_up_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        unmark(value)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "7", 7), (int, True, 1), (int, 7.0, 7), (float, "1.5", 1.5), (float, 2, 2.0), (bool, "true", True), (bool, 0, False),
        (Decimal, "1.20", Decimal("1.20")), (Decimal, 0.1, Decimal("0.1")), (str, 7, "7"), (str, {"a": 1}, '{"a":1}'),
        (datetime, "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), (date, "2026-01-02T03:04", date(2026, 1, 2)),
        (UUID, str(ID), ID), (bytes, "AP8=", b"\x00\xff"), (timedelta, 60, timedelta(minutes=1)), (int, None, None),
    ],
)  # fmt: skip
def test_json_becomes_what_a_column_takes(kind: type[Any], value: Any, expected: Any) -> None:
    assert to_type(kind, value) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "seven"),
        (int, 1.5),
        (bool, 7),
        (datetime, 7),
        (date, "soon"),
        (bytes, "*"),
        (UUID, "x"),
        (int, [1]),
        (float, {}),
    ],
)
def test_json_that_a_column_cannot_take_is_refused(kind: type[Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_type(kind, value)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_query_may_end_in_a_comment_and_contain_colons(file: Path, engine: sa.Engine, access: Access) -> None:
    do(engine, "CREATE TABLE t (id INTEGER, name TEXT)", "INSERT INTO t VALUES (1, 'a:b'), (2, '%')")
    query = "SELECT id, name || ':x%y' AS name FROM t -- all of them"
    assert read_all(source(file, access, query=query)).records == [
        {"id": 1, "name": "a:b:x%y"},
        {"id": 2, "name": "%:x%y"},
    ]


def test_readers_that_begin_at_once_share_one_description_of_the_table(
    file: Path, engine: sa.Engine, access: Access
) -> None:
    do(engine, "CREATE TABLE items (id INTEGER PRIMARY KEY)")
    read, together = source(file, access, table="items"), Barrier(8)

    def look(_: int) -> sa.FromClause:
        with engine.connect() as db:
            together.wait(10)
            return read._from(db)

    with ThreadPoolExecutor(8) as readers:
        assert len({id(rows) for rows in readers.map(look, range(8))}) == 1


def test_columns_can_be_chosen(file: Path, engine: sa.Engine, access: Access) -> None:
    do(
        engine,
        'CREATE TABLE "we ird" (id INTEGER PRIMARY KEY, "a ""b" TEXT, c TEXT)',
        "INSERT INTO \"we ird\" VALUES (1, 'x', 'y')",
    )
    assert read_all(source(file, access, table="we ird", columns=['a "b'])).records == [{'a "b': "x", "id": 1}]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_rows_without_key_and_keys_that_come_twice_are_told(
    batch_size: int, file: Path, engine: sa.Engine, access: Access
) -> None:
    do(engine, "CREATE TABLE t (id TEXT, name TEXT)",
       "INSERT INTO t VALUES ('a', '1'), ('b', '2'), ('b', '3'), (NULL, '4'), ('c', '5')")  # fmt: skip
    seen = read_all(source(file, access, table="t"), Read(batch_size=batch_size))
    assert {record["id"] for record in seen.records} == {"a", "b", "c"}
    assert [str(problem.message) for problem in seen.problems] == [
        "rows without a key: 1", "the column 'id' has it more than once",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("TEXT", ["2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"]),
        ("TEXT", ["2026-01-01 00:00:00", "2026-01-03 00:00:00"]),
        ("TEXT", ["2026-01-01T00:00:00.000+00:00", "2026-01-03T00:00:00.000+00:00"]),
        ("TEXT", ["2026-01-01", "2026-01-03"]),
        ("DATETIME", ["2026-01-01 00:00:00.000000", "2026-01-03 00:00:00.000000"]),
        ("DATE", ["2026-01-01", "2026-01-03"]),
        ("INTEGER", [1767225600, 1767398400]),
    ],
)
def test_an_override_reads_what_changed_since_whatever_the_column_is(
    kind: str, values: list[Any], file: Path, engine: sa.Engine, access: Access
) -> None:
    do(engine, f"CREATE TABLE t (id INTEGER PRIMARY KEY, at {kind})")
    do(engine, *(f"INSERT INTO t VALUES ({number}, {value!r})" for number, value in enumerate(values)))
    seen = read_all(source(file, access, table="t", state_column="at"), Read(since=datetime(2026, 1, 2, tzinfo=UTC)))
    assert [record["id"] for record in seen.records] == [1]


def test_a_row_that_changes_while_it_is_read_comes_again(file: Path, engine: sa.Engine, access: Access) -> None:
    do(engine, "CREATE TABLE t (id INTEGER PRIMARY KEY, at INTEGER)", "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    first = read_all(source(file, access, table="t", state_column="at"), Read(batch_size=2)).batches[0]
    do(engine, "UPDATE t SET at = 4 WHERE id = 1")
    rest = read_all(source(file, access, table="t", state_column="at"), Read(cursor=first.cursor))
    assert [record["id"] for record in rest.records] == [3, 1]
    assert rest.state == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"table": "nope"}, "there is no table 'nope'"),
        ({"table": "t", "key": "nope"}, "has no column 'nope'"),
        ({"table": "t", "state_column": "nope"}, "has no column 'nope'"),
        ({"query": "SELECT 1 AS a"}, "the query has no column 'id'"),
        ({"query": "SELECT * FROM nope"}, "no such table: nope"),
        ({"query": "SELEC 1"}, "syntax error"),
        ({"query": "DELETE FROM t RETURNING id"}, "syntax error"),
    ],
)
def test_what_is_not_there_is_a_wrong_configuration(
    config: dict[str, Any], message: str, file: Path, engine: sa.Engine, access: Access
) -> None:
    do(engine, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    with pytest.raises(InvalidConfiguration, match=message):
        read_all(source(file, access, **config))


@pytest.mark.parametrize("request_", [Read(cursor={"page": 1}), Read(cursor="x"), Read(state={"x": "y"})])
def test_a_cursor_of_another_source_is_refused(request_: Read, file: Path, engine: sa.Engine, access: Access) -> None:
    do(engine, "CREATE TABLE t (id INTEGER PRIMARY KEY, at INTEGER)")
    with pytest.raises(InvalidConfiguration, match="does not come from this source"):
        read_all(source(file, access, table="t", state_column="at"), request_)


# --- writing ---------------------------------------------------------------------------------------------------------


def entity(key: str, **payload: Any) -> Entity:
    return Entity(key, payload, "job")


@pytest.mark.parametrize("writer", ["sqlite", "other"])
def test_rows_are_inserted_and_updated_by_all_key_columns(
    writer: str, file: Path, engine: sa.Engine, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    if writer == "other":
        monkeypatch.setattr(sql, "WRITERS", {"sqlite": update_or_insert})
    do(engine, "CREATE TABLE t (a INTEGER, b TEXT, c TEXT, PRIMARY KEY (a, b))")
    config = {"url": f"sqlite:///{file}", "table": "t", "key": ["a", "b"]}
    written = write(
        config, access, entity("x", a=1, b="x", c="one"), entity("y", a=1, b="y"), entity("x", a="1", b="x", c=None)
    )
    assert [(one.external_id, one.created) for one in written] == [("x", True), ("y", True), ("x", False)]
    with engine.connect() as db:
        assert [tuple(row) for row in db.exec_driver_sql("SELECT * FROM t ORDER BY b")] == [
            (1, "x", None),
            (1, "y", None),
        ]
    with pytest.raises(InvalidPayload, match="no value for the key column 'b'"):
        write(config, access, entity("x", a=1))


@pytest.mark.parametrize(
    ("payload", "kind", "message"),
    [
        ({"number": "seven"}, InvalidPayload, "the column 'number' cannot take this value: the text is no int"),
        ({"name": None}, InvalidPayload, "NOT NULL constraint failed"),
        ({"name": "x", "number": -1}, InvalidPayload, "CHECK constraint failed"),
        ({"nope": 1}, InvalidConfiguration, "has no column 'nope'"),
    ],
)
def test_what_the_table_refuses_says_why(
    payload: dict[str, Any], kind: type[ConnectorError], message: str, *, file: Path, engine: sa.Engine, access: Access
) -> None:
    do(engine, "CREATE TABLE t (id TEXT PRIMARY KEY, name TEXT NOT NULL, number INTEGER CHECK (number > 0))")
    with pytest.raises(kind, match=message) as caught:
        write({"url": f"sqlite:///{file}", "table": "t", "key": "id"}, access, entity("k", **payload))
    assert type(caught.value) is kind


def test_a_key_without_a_unique_constraint_is_a_wrong_configuration(
    file: Path, engine: sa.Engine, access: Access
) -> None:
    do(engine, "CREATE TABLE t (id TEXT, name TEXT)")
    with pytest.raises(InvalidConfiguration, match="ON CONFLICT"):
        write({"url": f"sqlite:///{file}", "table": "t", "key": "id"}, access, entity("k", name="x"))


async def test_a_column_that_is_added_later_is_found(file: Path, engine: sa.Engine, access: Access) -> None:
    do(engine, "CREATE TABLE t (id TEXT PRIMARY KEY)")
    target = SqlTarget(parse(SqlTargetConfig, {"url": f"sqlite:///{file}", "table": "t", "key": "id"}), access)
    assert (await target.write(entity("k"))).created
    do(engine, "ALTER TABLE t ADD COLUMN name TEXT")
    assert not (await target.write(entity("k", name="x"))).created
    await target.close()


# --- where it does not go --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u@127.0.0.1/db", "is a loopback address"),
        ("postgresql://u@localhost/db", "is a loopback address"),
        ("mysql+pymysql://u@10.0.0.1/db", "is a private address|not installed"),
        ("postgresql:///db", "has no host"),
        ("postgresql://u@a.example/db?host=127.0.0.1", "has the parameter 'host'"),
        ("postgresql://u@a.example/db?service=x", "has the parameter 'service'"),
        ("mssql+pyodbc://u@a.example/db?odbc_connect=x", "databases of type 'mssql' are not known"),
        ("nonsense", "malformed"),
        ("sqlite://", "names an absolute path"),
        ("sqlite:///:memory:", "names an absolute path"),
        ("sqlite:////etc/passwd", "JOBQ_POLICY__AREAS"),
        ("sqlite:////etc/passwd?mode=rwc&uri=true", "without parameters"),
    ],
)
def test_a_database_that_must_not_be_reached_is_refused(url: str, message: str, access: Access) -> None:
    config = parse(SqlSourceConfig, {"secret": "dsn", "secrets": {"dsn": "d"}, "table": "t", "key": "id"})
    with pytest.raises(InvalidConfiguration, match=message):
        read_all(SqlSource(config, Access(access.policy, {"dsn": url})))


def test_a_missing_file_is_not_made(tmp_path: Path, access: Access) -> None:
    with pytest.raises(InvalidConfiguration, match="there is no database"):
        read_all(source(tmp_path / "none.db", access, table="t"))
    assert not (tmp_path / "none.db").exists()


def test_a_name_that_does_not_resolve_and_a_port_where_nobody_listens_are_unavailable() -> None:
    for host in ("none.invalid", "127.0.0.1:1"):
        config = parse(SqlSourceConfig, {"url": f"postgresql://u@{host}/db", "table": "t", "key": "id"})
        with pytest.raises(Unavailable):
            read_all(SqlSource(config, Access(Policy(probe_networks=["127.0.0.0/8"]))))


def test_a_secret_that_is_missing_is_named() -> None:
    config = parse(SqlSourceConfig, {"secret": "dsn", "secrets": {"dsn": "d"}, "table": "t", "key": "id"})
    with pytest.raises(InvalidCredentials, match="'dsn' was not given"):
        read_all(SqlSource(config, Access(Policy())))


class _FromServer(Exception):
    sqlstate: str | None = None


@pytest.mark.parametrize(
    ("wrapper", "sqlstate", "text", "kind"),
    [
        (exc.OperationalError, "28P01", "password authentication failed", InvalidCredentials),
        (exc.OperationalError, None, 'FATAL:  password authentication failed for user "x"', InvalidCredentials),
        (exc.OperationalError, None, "Access denied for user", InvalidCredentials),
        (exc.ProgrammingError, "42501", "permission denied for table t", InvalidCredentials),
        (exc.ProgrammingError, "42P01", "relation does not exist", InvalidConfiguration),
        (exc.OperationalError, "3D000", "database does not exist", InvalidConfiguration),
        (exc.DataError, "22001", "value too long", InvalidPayload),
        (exc.IntegrityError, "23505", "duplicate key", InvalidPayload),
        (exc.OperationalError, "57014", "canceling statement due to statement timeout", Unavailable),
        (exc.OperationalError, "40P01", "deadlock detected", Unavailable),
        (exc.OperationalError, None, "database is locked", Unavailable),
        (exc.InterfaceError, None, "connection already closed", Unavailable),
    ],
)
def test_a_databases_error_becomes_the_right_one(
    wrapper: type[exc.DBAPIError], sqlstate: str | None, text: str, kind: type[ConnectorError]
) -> None:
    cause = _FromServer(text)
    cause.sqlstate = sqlstate
    meant = _meaning(wrapper("SELECT secret", {}, cause), sqlstate or "", text)
    assert type(meant) is kind
    assert str(meant) == text


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"url": "postgresql://u:p@h/db", "table": "t"}, "contains a password"),
        ({"table": "t"}, "give either `url` or `secret`"),
        ({"url": "sqlite:////a", "secret": "x", "table": "t"}, "give either `url` or `secret`"),
        ({"secret": "x", "table": "t"}, "uses the secret 'x', which `secrets` does not have"),
        ({"url": "sqlite:////a"}, "give either `table` or `query`"),
        ({"url": "sqlite:////a", "query": "q", "columns": ["a"]}, "go with `table`"),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_is_wrong(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(SqlSourceConfig, {"key": "id", **config})
    assert message in str(caught.value)


def test_a_file_outside_of_every_area_is_refused_at_creation() -> None:
    with pytest.raises(Forbidden):
        parse(SqlTargetConfig, {"url": "sqlite:////etc/passwd", "table": "t", "key": "id"}).check(Policy())
