"""SQL that means the same to PostgreSQL and to SQLite: types, the clock, many values as one parameter, statistics.

All other modules of the store build one statement for both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ColumnElement, FromClause, Select
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from jobq.histogram import GROWTH, SHORTEST

POSTGRESQL = "postgresql"


# --- types -------------------------------------------------------------------------------------------------


class Instant(TypeDecorator[datetime]):
    """An aware instant in UTC. SQLite keeps it as text of fixed width, which sorts as the instants do."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(sa.DateTime(timezone=True) if dialect.name == POSTGRESQL else sa.String(27))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == POSTGRESQL else instant_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None or isinstance(value, datetime):
            return value if value is None else value.astimezone(UTC)
        return datetime.fromisoformat(value)  # a tenth of what strptime takes, for each instant of each row


Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), POSTGRESQL)


def instant_text(value: datetime) -> str:
    """The one textual form of an instant that both databases read."""
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


# --- the database's clock ------------------------------------------------------------------------------------


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock: the only one that instants are compared by."""

    type = Instant()
    inherit_cache = True
    name = "now"


@compiles(now, POSTGRESQL)
def _now_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    return "statement_timestamp()"


@compiles(now)
def _now_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    return "strftime('%Y-%m-%dT%H:%M:%f000Z', 'now')"


class plus(FunctionElement[datetime]):  # noqa: N801
    """``plus(instant, seconds)``: the instant so many seconds later (or earlier); NULL if either is NULL."""

    type = Instant()
    inherit_cache = True
    name = "plus"


@compiles(plus, POSTGRESQL)
def _plus_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    instant, seconds = element.clauses
    return f"({compiler.process(instant, **kw)} + {compiler.process(seconds, **kw)} * interval '1 second')"


@compiles(plus)
def _plus_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    instant, seconds = element.clauses
    return (
        f"strftime('%Y-%m-%dT%H:%M:%f000Z', {compiler.process(instant, **kw)}, "
        f"round({compiler.process(seconds, **kw)}, 3) || ' seconds')"
    )


class epoch(FunctionElement[float]):  # noqa: N801
    """``epoch(instant)``: seconds since 1970."""

    type = sa.Float()
    inherit_cache = True
    name = "epoch"


@compiles(epoch, POSTGRESQL)
def _epoch_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return f"extract(epoch FROM {compiler.process(element.clauses, **kw)})::float8"


@compiles(epoch)
def _epoch_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    return f"(CAST(strftime('%s', {instant}) AS REAL) + CAST(substr({instant}, 20, 7) AS REAL))"


class period(FunctionElement[int]):  # noqa: N801
    """``period(instant, seconds)``: the start of the period of that length that it lies in, in seconds since 1970."""

    type = sa.BigInteger()
    inherit_cache = True
    name = "period"


@compiles(period, POSTGRESQL)
def _period_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    instant, length = (compiler.process(each, **kw) for each in element.clauses)
    return f"(floor(extract(epoch FROM {instant}) / {length})::bigint * {length})"


@compiles(period)
def _period_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    instant, length = (compiler.process(each, **kw) for each in element.clauses)
    return f"(CAST(strftime('%s', {instant}) AS INTEGER) / {length} * {length})"


class bucket(FunctionElement[int]):  # noqa: N801
    """``bucket(seconds)``: see ``jobq.histogram.bucket_of``; NULL of NULL."""

    type = sa.Integer()
    inherit_cache = True
    name = "bucket"


@compiles(bucket, POSTGRESQL)
def _bucket_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    longer = f"ln(greatest({seconds}, {SHORTEST}) / {SHORTEST}) / {math.log(GROWTH)!r}"
    return f"CASE WHEN {seconds} IS NOT NULL THEN ceil({longer})::integer END"


@compiles(bucket)
def _bucket_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"jobq_bucket({compiler.process(element.clauses, **kw)})"


class json_parts(FunctionElement[Any]):  # noqa: N801
    """``json_parts(value, …)``: documents and texts as one list, in that order; NULL is null."""

    type = Json
    inherit_cache = True
    name = "json_parts"


@compiles(json_parts, POSTGRESQL)
def _json_parts_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return f"jsonb_build_array({compiler.process(element.clauses, **kw)})"


@compiles(json_parts)
def _json_parts_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    parts = ((each, compiler.process(each, **kw)) for each in element.clauses)
    shown = (text if isinstance(each.type, sa.Text) else f"json({text})" for each, text in parts)
    return f"json_array({', '.join(shown)})"


def later(seconds: float | ColumnElement[Any]) -> ColumnElement[datetime]:
    """The database's now, so many seconds later."""
    return plus(now(), sa.cast(seconds, sa.Float))


# --- many values as one parameter ---------------------------------------------------------------------------


def incoming(dialect: str, parameter: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """Rows that come as one JSON array (see ``rows_json``), as a table named after the parameter.

    One parameter of one statement carries a batch of any size, so the statement's text never changes.
    """
    if dialect == POSTGRESQL:
        array = sa.cast(sa.bindparam(parameter, type_=sa.Text), postgresql.JSONB)
        return (
            sa.func.jsonb_to_recordset(array)
            .table_valued(*(sa.column(name, type_) for name, type_ in columns.items()), name=parameter)
            .render_derived(name=parameter, with_types=True)
        )
    each = sa.func.json_each(sa.bindparam(parameter, type_=sa.Text)).table_valued("value", "key", name=f"{parameter}_")
    values = (
        # "->" keeps the JSON text of a part, json_extract gives plain values.
        sa.type_coerce(
            each.c.value.op("->")(f"$.{name}") if type_ is Json else sa.func.json_extract(each.c.value, f"$.{name}"),
            type_,
        ).label(name)
        for name, type_ in columns.items()
    )
    return sa.select(*values).order_by(each.c.key).subquery(parameter)


def is_one_of(dialect: str, column: ColumnElement[Any], parameter: str) -> ColumnElement[bool]:
    """``column`` is among the values that come as one parameter (see ``id_list``)."""
    if dialect == POSTGRESQL:
        item = column.type if not isinstance(column.type, sa.Text) else sa.Text()
        return column == sa.any_(
            sa.cast(sa.bindparam(parameter, type_=postgresql.ARRAY(sa.Text)), postgresql.ARRAY(item))
        )
    each = sa.func.json_each(sa.bindparam(parameter, type_=sa.Text)).table_valued("value", name=f"{parameter}_")
    return column.in_(sa.select(each.c.value))


def picked_once(ids: Select[Any]) -> Select[Any]:
    """The ids that a SELECT with a limit and row locks picks, for an UPDATE or a DELETE of those rows.

    A plain subquery is run again for each row where PostgreSQL joins it from the inside, as it does while it believes
    the table to be empty: each run passes over what the one before took, and the limit would limit nothing.
    """
    return sa.select(ids.cte("picked").c.id)


def id_list(dialect: str, values: Iterable[UUID | str]) -> Any:
    """The parameter that ``is_one_of`` reads; sorted, because rows are locked in the order of their ids."""
    texts = sorted(value.hex if isinstance(value, UUID) else value for value in values)
    return texts if dialect == POSTGRESQL else json.dumps(texts)


def rows_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The parameter that ``incoming`` reads. Raises ValueError or TypeError for what has no JSON form."""
    return json.dumps(rows, default=_plain, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, datetime):
        return instant_text(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def insert(dialect: str, table: sa.Table) -> Any:
    """INSERT that knows ON CONFLICT."""
    return postgresql.insert(table) if dialect == POSTGRESQL else sqlite.insert(table)


def estimated_rows(conn: Connection, query: Select[Any]) -> int:
    """How many rows the query would give, by the planner's statistics, without running it. 0: nobody can say."""
    if conn.dialect.name != POSTGRESQL:
        return 0
    # Planned with the values themselves: prepared statements are planned for any (see jobq.store.database).
    statement = query.compile(dialect=conn.dialect, compile_kwargs={"literal_binds": True})
    (plan,) = conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}").scalar_one()
    return int(plan["Plan"]["Plan Rows"])


def committed_until(conn: Connection, lag: float) -> datetime:
    """An instant from which on nothing is missing any more that ``now()`` dated earlier: all of it is committed.

    Earlier than now by ``lag`` seconds at least. PostgreSQL: and than the start of every transaction that has written
    and goes on, of which an application may keep one open; but of those only for ``_LATEST_COMMIT``. SQLite: who writes
    is alone, and that is the caller.
    """
    end = later(-max(lag, 0.001))
    if conn.dialect.name == POSTGRESQL:
        writer = sa.func.coalesce(_OLDEST_WRITER, now())  # greatest() passes over NULL
        end = sa.func.least(end, sa.func.greatest(later(-_LATEST_COMMIT), writer))
    found: datetime = conn.execute(sa.select(sa.type_coerce(end, Instant()))).scalar_one()
    return found


_LATEST_COMMIT = 3600.0
_OLDEST_WRITER: ColumnElement[datetime] = sa.literal_column(
    "(SELECT min(xact_start) - interval '1 microsecond' FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
    " AND datname = current_database() AND pid <> pg_backend_pid())"
)
