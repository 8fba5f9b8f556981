"""SQL: reads a table or a query in keyset pages, and writes rows by their key."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from threading import Lock
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from jobq.connectors import Access, Batch, Entity, InvalidConfiguration, InvalidPayload, Problem, Read, Written
from workers.connectors.database import Database
from workers.connectors.sql_configs import SqlSourceConfig, SqlTargetConfig
from workers.connectors.values import as_json, mark, to_type, unmark

_OFFSET = re.compile(r"[+-]\d\d:?\d\d$")
_BIND = re.compile(r"(?<![:\\]):(?=\w)")


@dataclass(frozen=True, slots=True)
class Position:
    """Behind which row one is: rows without a state come first, then all others in the order of state and key."""

    key: Any = None
    state: Any = None
    nulls: bool = False
    """True: among the rows without a state."""
    oldest: Any = None
    """Rows with an older state are left out."""

    def cursor(self) -> dict[str, Any]:
        return {"key": mark(self.key), "state": mark(self.state), "nulls": self.nulls, "oldest": mark(self.oldest)}


class SqlSource:
    """Reads rows in short statements: no transaction stays open between two batches.

    Incremental: rows whose state is at least the newest one that was seen, so that a row which was committed in the
    same instant is not missed. A row that changes while it is read comes again, at its new place.
    """

    config: ClassVar[type[SqlSourceConfig]] = SqlSourceConfig
    is_file = False

    def __init__(self, config: SqlSourceConfig, access: Access) -> None:
        self._config = config
        self._database = Database(config, access)
        self._rows: sa.FromClause | None = None
        self._looking = Lock()

    async def read(self, request: Read) -> AsyncIterator[Batch]:
        """The rows as objects. Rows without a key, and keys that come twice in a row, are problems."""
        if request.entity is not None:
            yield Batch(await self._database.run(lambda db: self._one(db, str(request.entity))), None)
            return
        position = await self._database.run(lambda db: self._begin(db, request))
        seen = request.state if self._config.state_column is not None else None
        if request.cursor is None and (count := await self._database.run(self._without_key)):
            yield Batch([], position.cursor(), seen, [Problem("the whole source", f"rows without a key: {count}")])
        elif position.state is not None:
            seen = mark(position.state)
            yield Batch([], position.cursor(), seen)  # there may be nothing more, and this must not be forgotten
        while True:
            at = position
            rows = await self._database.run(lambda db, at=at: self._page(db, at, request.batch_size + 1))  # type: ignore[misc]
            page = rows[: request.batch_size]
            if page:
                last = page[-1]
                state = None if self._config.state_column is None else last[self._config.state_column]
                position = Position(last[self._config.key], state, at.nulls, at.oldest)
                seen = seen if state is None else mark(state)
                yield Batch([_record(row) for row in page], position.cursor(), seen, self._twice(rows))
            if len(rows) <= request.batch_size:
                if not at.nulls:
                    return
                position = Position(oldest=at.oldest)

    async def close(self) -> None:
        """Close the connections."""
        await self._database.close()

    # --- statements (in a thread)

    def _from(self, db: sa.Connection) -> sa.FromClause:
        """The table as the database describes it, or the query as a subquery: one for all that read side by side.

        With two of them the parts of a statement would be of different tables.
        """
        with self._looking:
            return self._described(db)

    def _described(self, db: sa.Connection) -> sa.FromClause:
        config = self._config
        if self._rows is None and config.table is not None:
            table = sa.Table(config.table, sa.MetaData(), schema=config.db_schema, autoload_with=db)
            wanted = {config.key, config.state_column, *(config.columns or ())} - {None}
            if missing := wanted - set(table.c.keys()):
                raise InvalidConfiguration(f"the table {config.table!r} has no column {min(map(str, missing))!r}")
            self._rows = table
        elif self._rows is None:
            text = _BIND.sub(r"\\:", str(config.query).strip().rstrip(";"))
            empty = db.execute(sa.text(f"SELECT * FROM ({text}\n) q WHERE 1 = 0"))  # noqa: S608 - a query is what users write
            names = list(empty.keys())
            for name in filter(None, (config.key, config.state_column)):
                if name not in names:
                    raise InvalidConfiguration(f"the query has no column {name!r}")
            self._rows = sa.text(text + "\n").columns(*(sa.column(name) for name in names)).subquery("q")
        assert self._rows is not None
        return self._rows

    def _select(self, db: sa.Connection) -> sa.Select[Any]:
        rows, config = self._from(db), self._config
        if not config.columns:
            return sa.select(rows)
        names = dict.fromkeys([*config.columns, config.key, *filter(None, [config.state_column])])
        return sa.select(*(rows.c[name] for name in names))

    def _page(self, db: sa.Connection, at: Position, limit: int) -> Sequence[Mapping[str, Any]]:
        key, statement = self._from(db).c[self._config.key], self._select(db)
        statement = statement.where(key.is_not(None)).order_by(key).limit(limit)
        if self._config.state_column is not None:
            state = self._from(db).c[self._config.state_column]
            if at.nulls:
                statement = statement.where(state.is_(None))
            else:
                statement = statement.where(state.is_not(None)).order_by(None).order_by(state, key)
                if at.oldest is not None:
                    statement = statement.where(state >= at.oldest)
                if at.key is not None:
                    statement = statement.where(sa.or_(state > at.state, sa.and_(state == at.state, key > at.key)))
                return _fetched(db, statement)
        if at.key is not None:
            statement = statement.where(key > at.key)
        return _fetched(db, statement)

    def _begin(self, db: sa.Connection, request: Read) -> Position:
        """Where to begin. Rows without a state are part of a full run only."""
        try:
            if request.cursor is not None:
                cursor = dict(request.cursor)
                values = {name: unmark(cursor[name]) for name in ("key", "state", "oldest")}
                return Position(nulls=bool(cursor["nulls"]), **values)
            if self._config.state_column is None:
                return Position()
            if request.since is not None:
                return Position(oldest=self._like_the_column(db, request.since))
            return Position(oldest=unmark(request.state), nulls=request.state is None)
        except (ValueError, TypeError, KeyError):
            raise InvalidConfiguration("the cursor or state does not come from this source: start anew") from None

    def _like_the_column(self, db: sa.Connection, since: datetime) -> Any:
        """The instant in the form that the state column has: text, seconds, a day, or an instant with or without zone."""
        state = self._from(db).c[str(self._config.state_column)]
        sample = db.execute(sa.select(state).where(state.is_not(None)).limit(1)).scalar()
        at = since.astimezone(UTC)
        if isinstance(sample, datetime):
            return at if sample.tzinfo else at.replace(tzinfo=None)
        if isinstance(sample, date):
            return at.date()
        if isinstance(sample, str):
            text = at.replace(tzinfo=None).isoformat(" " if sample[10:11] == " " else "T")[: max(10, len(sample))]
            return text + ("Z" if sample.endswith("Z") else "+00:00" if _OFFSET.search(sample) else "")
        return at if sample is None else at.timestamp()

    def _without_key(self, db: sa.Connection) -> int:
        key = self._from(db).c[self._config.key]
        if not getattr(key, "nullable", True):
            return 0
        return int(db.execute(sa.select(sa.func.count()).select_from(self._from(db)).where(key.is_(None))).scalar_one())

    def _one(self, db: sa.Connection, key: str) -> list[dict[str, Any]]:
        column = self._from(db).c[self._config.key]
        kind = _python_type(column)
        try:
            same = sa.cast(column, sa.String) == key if kind is None else column == to_type(kind, key)
        except ValueError:
            return []
        return [_record(row) for row in _fetched(db, self._select(db).where(same).limit(1))]

    def _twice(self, rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
        """Keys that come twice at one place: only one of such rows is sure to be read."""
        key, state = self._config.key, self._config.state_column
        places = [(row[key], row[state] if state else None) for row in rows]
        twice = dict.fromkeys(as_json(place[0]) for place, after in pairwise(places) if place == after)
        return [Problem(f"key {value!r}", f"the column {key!r} has it more than once") for value in twice]


class SqlTarget:
    """Writes each entity as one row, inserted or updated by its key. ``external_id`` is the key."""

    config: ClassVar[type[SqlTargetConfig]] = SqlTargetConfig

    def __init__(self, config: SqlTargetConfig, access: Access) -> None:
        self._config = config
        self._database = Database(config, access)
        self._table: sa.Table | None = None

    async def write(self, entity: Entity) -> Written:
        """Insert or update the row. ``created`` tells which it was."""
        created = await self._database.run(lambda db: self._write(db, entity))
        return Written(entity.key, created)

    async def close(self) -> None:
        """Close the connections."""
        await self._database.close()

    def _write(self, db: sa.Connection, entity: Entity) -> bool | None:
        table = self._known_table(db, entity)
        values = {name: _value(table.c[name], value) for name, value in self._row(entity).items()}
        return WRITERS.get(db.dialect.name, update_or_insert)(db, table, self._config.key, values)

    def _row(self, entity: Entity) -> dict[str, Any]:
        row = dict(entity.payload)
        if len(self._config.key) == 1:
            row.setdefault(self._config.key[0], entity.key)
        if missing := [name for name in self._config.key if row.get(name) is None]:
            raise InvalidPayload(f"the payload has no value for the key column {missing[0]!r}")
        return row

    def _known_table(self, db: sa.Connection, entity: Entity) -> sa.Table:
        """The table as the database describes it; looked at again when a column is missing."""
        config, wanted = self._config, {*self._config.key, *entity.payload}
        table = self._table
        if table is None or wanted - set(table.c.keys()):
            table = self._table = sa.Table(config.table, sa.MetaData(), schema=config.db_schema, autoload_with=db)
        if missing := wanted - set(table.c.keys()):
            raise InvalidConfiguration(f"the table {config.table!r} has no column {min(missing)!r}")
        return table


# --- writing a row ---------------------------------------------------------------------------------------------

Writer = Callable[[sa.Connection, sa.Table, Sequence[str], Mapping[str, Any]], bool | None]


def _postgresql(db: sa.Connection, table: sa.Table, key: Sequence[str], row: Mapping[str, Any]) -> bool | None:
    insert = postgresql.insert(table).values(row)
    rest = {name: insert.excluded[name] for name in row if name not in key}
    # xmax is 0 in a row that was inserted, and the updating transaction's id in one that was updated.
    inserted: sa.ColumnElement[bool] = sa.literal_column("(xmax = 0)")
    upsert = insert.on_conflict_do_update(index_elements=list(key), set_=rest or {key[0]: insert.excluded[key[0]]})
    return bool(db.execute(upsert.returning(inserted)).scalar_one())


def _sqlite(db: sa.Connection, table: sa.Table, key: Sequence[str], row: Mapping[str, Any]) -> bool | None:
    insert = sqlite.insert(table).values(row).on_conflict_do_nothing(index_elements=list(key))
    if db.execute(insert).rowcount == 1:
        return True
    _update(db, table, key, row)
    return False


def update_or_insert(db: sa.Connection, table: sa.Table, key: Sequence[str], row: Mapping[str, Any]) -> bool | None:
    """For databases without an upsert that SQLAlchemy knows: update; insert what is not there; update if it came."""
    if _update(db, table, key, row):
        return False
    try:
        with db.begin_nested():
            db.execute(sa.insert(table).values(row))
    except exc.IntegrityError:
        if not _update(db, table, key, row):
            raise
        return False
    return True


WRITERS: Mapping[str, Writer] = {"postgresql": _postgresql, "sqlite": _sqlite}


def _update(db: sa.Connection, table: sa.Table, key: Sequence[str], row: Mapping[str, Any]) -> bool:
    rest = {name: value for name, value in row.items() if name not in key}
    same = sa.and_(*(table.c[name] == row[name] for name in key))
    if not rest:
        return db.execute(sa.select(sa.literal(1)).select_from(table).where(same)).first() is not None
    return db.execute(sa.update(table).where(same).values(rest)).rowcount > 0


# --- values ----------------------------------------------------------------------------------------------------


def _fetched(db: sa.Connection, statement: sa.Select[Any]) -> Sequence[Mapping[str, Any]]:
    return [dict(row) for row in db.execute(statement).mappings()]


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): as_json(value) for name, value in row.items()}


def _python_type(column: sa.ColumnElement[Any]) -> type[Any] | None:
    """The Python type of a column's values, where SQLAlchemy knows it."""
    try:
        return None if isinstance(column.type, sa.types.NullType) else column.type.python_type
    except NotImplementedError:
        return None


def _value(column: sa.ColumnElement[Any], value: Any) -> Any:
    kind = _python_type(column)
    if value is None:
        return sa.null()
    if kind is None or isinstance(column.type, sa.JSON | sa.ARRAY):
        return value
    try:
        return to_type(kind, value)
    except ValueError as error:
        name = getattr(column, "name", "?")
        raise InvalidPayload(f"the column {name!r} cannot take this value: {error}") from None
