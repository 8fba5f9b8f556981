"""Another application's database: where it may be, connections to it, and its errors in the words of connectors.

The host of a URL is resolved and checked each time a connection is made, and the connection goes to the address that
was checked. A SQLite file must lie in an allowed area. URL parameters that name other hosts or files are refused.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from jobq.connectors import (
    Access,
    ConnectorError,
    InvalidConfiguration,
    InvalidCredentials,
    InvalidPayload,
    Unavailable,
)
from jobq.net import is_blocked
from jobq.outbound.resolver import system_lookup
from workers.connectors.sql_configs import SqlConfig
from workers.connectors.threads import Threads
from workers.redaction import Redaction

Result = TypeVar("Result")

SERVERS = frozenset({"postgresql", "mysql", "mariadb"})
_OPTIONS = frozenset({"sslmode", "channel_binding", "application_name", "connect_timeout", "charset"})
_POSTGRESQL = "postgresql+psycopg"
_CONNECT_TIMEOUT = 10
_REFUSED = re.compile(
    r"authentication failed|no pg_hba|role .* does not exist|access denied|no password", re.IGNORECASE
)
_MISSING = re.compile(
    r"no such (table|column)|unknown (column|database)|database .* does not exist|has no column named"
    r"|ON CONFLICT clause does not match|readonly database|not a database|syntax error",
    re.IGNORECASE,
)


class Database:
    """Connections of one connector, used from threads of its own."""

    def __init__(self, config: SqlConfig, access: Access) -> None:
        self._config, self._access = config, access
        self._hide = Redaction(access.secrets.values())
        self._threads = Threads("sql", config.connections)
        self._opening = threading.Lock()
        self._engine: sa.Engine | None = None

    async def run(self, work: Callable[[sa.Connection], Result]) -> Result:
        """What the work returns, done in one transaction. Raises ConnectorError."""
        return await self._threads.run(self._run, work)

    async def close(self) -> None:
        """Close all connections. May be called again."""
        self._threads.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def _run(self, work: Callable[[sa.Connection], Result]) -> Result:
        with self._translated(), self._opened().begin() as connection:
            return work(connection)

    def _opened(self) -> sa.Engine:
        with self._opening:
            if self._engine is None:
                self._engine = self._new_engine()
            return self._engine

    def _new_engine(self) -> sa.Engine:
        url = self._url()
        backend = url.get_backend_name()
        if backend == "sqlite":
            return _sqlite(url, self._config, self._access)
        if backend not in SERVERS:
            raise InvalidConfiguration(f"databases of type {backend!r} are not known; known: {_known()}")
        if not url.host:
            raise InvalidConfiguration("the database URL has no host: a local socket cannot be used")
        if unknown := url.query.keys() - _OPTIONS:
            raise InvalidConfiguration(
                f"the database URL has the parameter {min(unknown)!r}; known: {_listed(_OPTIONS)}"
            )
        settings: dict[str, Any] = {"connect_timeout": _CONNECT_TIMEOUT}
        if backend == "postgresql":
            settings["options"] = f"-c statement_timeout={int(self._config.timeout * 1000)}"
        # One connection for each thread, so that nobody waits for the pool.
        engine = sa.create_engine(
            url, connect_args=settings, pool_size=self._config.connections, max_overflow=0, pool_pre_ping=True
        )
        event.listen(engine, "do_connect", self._connect_to_a_checked_address)
        return engine

    def _url(self) -> sa.URL:
        config, secrets = self._config, self._access.secrets
        for name in (config.secret, config.password):
            if name is not None and name not in secrets:
                raise InvalidCredentials(f"the secret {name!r} was not given to the connector")
        text = secrets[config.secret] if config.secret is not None else str(config.url)
        try:
            url = sa.make_url(text.strip())
            backend = url.drivername.partition("+")[0]
        except (exc.ArgumentError, ValueError):
            raise InvalidConfiguration("the database URL is malformed") from None
        if config.password is not None:
            url = url.set(password=secrets[config.password])
        self._hide = Redaction([*secrets.values(), str(url.password or "")])
        return url.set(drivername=_POSTGRESQL) if backend in {"postgresql", "postgres"} else url

    def _connect_to_a_checked_address(self, _dialect: Any, _record: Any, _args: Any, params: dict[str, Any]) -> None:
        host = str(params.get("host", ""))
        try:
            addresses = system_lookup(host)
        except (OSError, UnicodeError) as error:
            known = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise Unavailable(f"the name {host} {'could not be resolved' if known else 'has no address'}") from None
        allowed = self._access.policy.networks_allowed()
        for address in addresses:
            if why := is_blocked(address, allowed):
                hint = "The operator can allow networks with JOBQ_POLICY__PROBE_NETWORKS."
                raise InvalidConfiguration(f"the host {host!r} is {why}, which jobq does not reach. {hint}")
        # libpq connects to hostaddr and still checks the certificate against host; others know the address only.
        params["hostaddr" if "options" in params else "host"] = str(addresses[0])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLAlchemy's errors hold statements and values: what leaves here holds the first line of the cause."""
        try:
            yield
        except exc.NoSuchTableError as error:
            raise InvalidConfiguration(f"there is no table {str(error)!r}") from None
        except (exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise InvalidConfiguration(f"the database's driver is not installed: {error}") from None
        except exc.DBAPIError as error:
            cause = error.orig or error
            text = self._hide(str(cause).partition("\n")[0])
            raise _meaning(error, str(getattr(cause, "sqlstate", None) or ""), text) from None
        except exc.StatementError as error:  # a value that the column's type cannot take
            raise InvalidPayload(self._hide(str(error.orig or error).partition("\n")[0])) from None
        except exc.SQLAlchemyError as error:
            raise ConnectorError(self._hide(str(error).partition("\n")[0])) from None


def _sqlite(url: sa.URL, config: SqlConfig, access: Access) -> sa.Engine:
    file = url.database or ""
    if not file.startswith("/") or url.query:
        raise InvalidConfiguration("a SQLite URL names an absolute path, without parameters: sqlite:////folder/file.db")
    if not access.policy.allows_area(file):
        hint = "The operator allows folders with JOBQ_POLICY__AREAS."
        raise InvalidConfiguration(f"{file!r} lies in no area that the operator allows. {hint}")
    if not Path(file).is_file():
        raise InvalidConfiguration(f"there is no database {file!r}")
    return sa.create_engine(url, connect_args={"timeout": config.timeout}, pool_size=config.connections, max_overflow=0)


def _meaning(error: exc.DBAPIError, sqlstate: str, text: str) -> ConnectorError:
    """Which connector error a database's error is: by its SQLSTATE, or, where there is none, by its class and words."""
    if sqlstate.startswith("28") or sqlstate == "42501" or _REFUSED.search(text):
        return InvalidCredentials(text)
    if sqlstate[:2] in {"22", "23"} or isinstance(error, exc.IntegrityError | exc.DataError):
        return InvalidPayload(text)
    if sqlstate[:2] in {"42", "3D", "3F", "0A"} or _MISSING.search(text):
        return InvalidConfiguration(text)
    if isinstance(error, exc.OperationalError | exc.InterfaceError) or error.connection_invalidated:
        return Unavailable(text)
    return InvalidConfiguration(text) if isinstance(error, exc.ProgrammingError) else ConnectorError(text)


def _known() -> str:
    return _listed(SERVERS | {"sqlite"})


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
