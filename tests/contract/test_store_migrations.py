"""The schema: it arrives once, however often and from however many places it is brought."""

import multiprocessing
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from jobq.errors import Misconfigured
from jobq.store import jobs, migrations
from jobq.store.database import Database
from jobq.store.tables import metadata
from tests import services
from tests.stores import Store

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: services.Postgres = request.getfixturevalue("postgres_server")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    database.close()


def upgrade_in_a_process(url: str) -> None:
    warnings.simplefilter("error")
    database = Database(url)
    migrations.upgrade(database)
    migrations.check(database)
    database.close()


def test_an_empty_database_is_refused_with_what_to_do(empty: Database) -> None:
    assert migrations.current(empty) is None
    with pytest.raises(Misconfigured) as refused:
        migrations.check(empty)
    assert (refused.value.code, refused.value.hint) == ("schema", "Run: jobq db upgrade")
    assert "schema version none" in refused.value.message


def test_using_an_empty_database_says_what_to_do_too(empty: Database) -> None:
    with pytest.raises(Misconfigured) as refused, empty.read() as conn:
        jobs.get(conn, None, jobs.new_id())
    assert (refused.value.code, refused.value.hint) == ("schema", "Run: jobq db upgrade")


def test_an_upgrade_brings_the_newest_version_and_a_second_one_changes_nothing(empty: Database) -> None:
    migrations.upgrade(empty)
    migrations.check(empty)
    assert migrations.current(empty) == migrations.newest()
    before = _schema(empty)
    migrations.upgrade(empty)
    assert _schema(empty) == before


def test_a_database_of_another_version_is_refused(empty: Database) -> None:
    migrations.upgrade(empty)
    with empty.begin() as conn:
        conn.execute(sa.text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(Misconfigured, match="schema version 9999"):
        migrations.check(empty)


def test_processes_that_upgrade_at_once_take_turns(empty_url: str, empty: Database) -> None:
    processes = [SPAWN.Process(target=upgrade_in_a_process, args=(empty_url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    migrations.check(empty)
    with empty.read() as conn:
        assert conn.scalar(sa.text(f"SELECT count(*) FROM {migrations.VERSION_TABLE}")) == 1


def test_an_upgrade_leaves_the_data_alone(store: Store) -> None:
    job_id = store.enqueue_one()
    migrations.upgrade(store.database)
    assert store.state(job_id) == "PENDING·ready"


def test_the_migrated_schema_is_the_one_that_the_code_knows(store: Store) -> None:
    blind = {"jobq_jobs_promote"} if store.dialect == "sqlite" else set()  # it cannot tell the parts of an expression

    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _to: object) -> bool:
        return name not in {migrations.VERSION_TABLE, *blind}

    with store.database.read() as conn, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index", sa.exc.SAWarning)
        options = {"version_table": migrations.VERSION_TABLE, "compare_type": True, "include_object": ours}
        assert compare_metadata(MigrationContext.configure(conn, opts=options), metadata) == []


def test_every_index_is_there(store: Store) -> None:
    query = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE '%pkey' "
                      f"AND tablename <> '{migrations.VERSION_TABLE}' AND indexname NOT LIKE '%_pkc'",
    }[store.dialect]  # fmt: skip
    with store.database.read() as conn:
        found = set(conn.scalars(sa.text(query)))
    assert found == {str(index.name) for table in metadata.sorted_tables for index in table.indexes}


def test_columns_may_be_null_where_the_code_says_so(store: Store) -> None:
    inspector = sa.inspect(store.database.engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)
        found = {
            (table.name, column["name"]): column["nullable"]
            for table in metadata.sorted_tables
            for column in inspector.get_columns(table.name)
        }
    assert found == {
        (table.name, column.name): bool(column.nullable) for table in metadata.sorted_tables for column in table.columns
    }


def _schema(database: Database) -> list[str]:
    inspector = sa.inspect(database.engine)
    return [
        f"{table}.{column['name']} {column['type']}"
        for table in sorted(inspector.get_table_names())
        for column in inspector.get_columns(table)
    ]
