"""Where the databases differ: how to connect, what makes a commit durable, how to insert at once.

Everything here is used by ``sql`` only; queries that both databases take alike are there.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from sealrelay.store.files import OpenFiles
from sealrelay.store.records import NewToken, Record, StoreError, StoreFull
from sealrelay.store.schema import messages
from sealrelay.store.turn import Turn

_BUSY_TIMEOUT_MS = 1500  # below the coordinator's attempt_timeout, so that the refusal gets there
_MIGRATION_TIMEOUT_MS = 30_000

INSERT = "INSERT INTO messages (id, client, token, sealed_at, received_at, server)"
UNLESS_THERE = "ON CONFLICT (id) DO NOTHING"
_INSERT_ONE = f"{INSERT} VALUES (?, ?, ?, ?, ?, ?) {UNLESS_THERE}"
_REPLACE_ONE = "UPDATE messages SET token = ? WHERE id = ? AND token = ?"


class Backend(ABC):
    """One database: its engine, and what only it can say."""

    engine: Engine
    file: Path | None = None
    """The database's file, where it is one of this host's."""
    files: OpenFiles | None = None
    """Those that it is kept in, where a writer has them open itself."""
    turn: Turn | None = None
    """What orders those who write to it, where the database itself does not."""

    @abstractmethod
    def insert(self, connection: Connection, records: Sequence[Record]) -> set[bytes]:
        """Insert records of different ids, leaving out those that are there.

        Returns the ids that are new. Durable when the transaction is committed.
        """

    @abstractmethod
    def find_servers(self, connection: Connection, ids: Sequence[bytes]) -> dict[bytes, str]:
        """The servers that stored the messages of these ids, which are as durable as new ones."""

    @abstractmethod
    def replace_tokens(self, connection: Connection, tokens: Sequence[NewToken]) -> int:
        """Give messages other tokens, unless they have others already; returns how many it gave."""

    @abstractmethod
    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """A connection in a transaction that no other migration runs beside."""

    @abstractmethod
    def size_bytes(self, connection: Connection) -> int:
        """The bytes that the messages and their indexes take up, with space to be used again."""

    def find_risk(self, connection: Connection) -> str | None:
        """What an administrator should know of how safe messages are here."""
        return None

    @abstractmethod
    def explain(self, error: DBAPIError) -> StoreError:
        """What to tell of an error of the driver."""


def make_backend(url: str, *, read_only: bool) -> Backend:
    """The backend for a store's URL. Raises StoreError, which never quotes the URL."""
    if url.startswith("postgresql://"):
        from sealrelay.store.postgres import PostgresBackend  # libpq, only where it is needed

        return PostgresBackend(url, read_only=read_only)
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError("the store's URL cannot be read") from None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return SqliteBackend(Path(parsed.database), read_only=read_only)
    raise StoreError(
        "the store's URL is not of the form sqlite:////path/to/messages.db or postgresql://user@host/db"
    )


class SqliteBackend(Backend):
    """An SQLite file in WAL mode, synced to disk at every commit."""

    def __init__(self, file: Path, *, read_only: bool) -> None:
        self.file = file
        if read_only:
            self.engine = self._make_engine("ro", _read_only_pragmas, _begin_reading)
            return
        self.files = OpenFiles(file)
        self.turn = Turn(Path(f"{file}.turn"))
        # Only a migration makes a file: an empty one would take the place of one that was moved.
        self.engine = self._make_engine("rw", _durable_pragmas, _begin_writing)

    def insert(self, connection: Connection, records: Sequence[Record]) -> set[bytes]:
        # SQLAlchemy would take 200 µs of each statement, where the driver takes 15.
        with _driver_errors(_INSERT_ONE), closing(connection.connection.cursor()) as cursor:
            return {
                record.message_id
                for record in records
                if cursor.execute(_INSERT_ONE, values_of(record)).rowcount
            }

    def find_servers(self, connection: Connection, ids: Sequence[bytes]) -> dict[bytes, str]:
        query = select(messages.c.id, messages.c.server).where(messages.c.id.in_(ids))
        return {row.id: row.server for row in connection.execute(query)}

    def replace_tokens(self, connection: Connection, tokens: Sequence[NewToken]) -> int:
        rows = [(token.new, token.message_id, token.old) for token in tokens]
        with _driver_errors(_REPLACE_ONE), closing(connection.connection.cursor()) as cursor:
            return int(cursor.executemany(_REPLACE_ONE, rows).rowcount)

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        engine = self._make_engine("rwc", _durable_pragmas, _begin_writing)
        with engine.connect() as connection:
            # Past SQLAlchemy, which would say BEGIN first, and wait for that as long as before.
            with closing(connection.connection.cursor()) as cursor:
                cursor.execute(f"PRAGMA busy_timeout = {_MIGRATION_TIMEOUT_MS}")
            with connection.begin():
                yield connection

    def size_bytes(self, connection: Connection) -> int:
        query = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return int(connection.execute(query).scalar_one())

    def explain(self, error: DBAPIError) -> StoreError:
        reason = str(error.orig)
        if "disk is full" in reason:
            return StoreFull("the store has no room left")
        return StoreError(f"the store failed: {reason}")

    def _make_engine(
        self,
        mode: str,
        connected: Callable[[sqlite3.Connection, ConnectionPoolEntry], None],
        begin: Callable[[Connection], None],
    ) -> Engine:
        """``mode`` as of https://www.sqlite.org/uri.html."""
        location = URL.create(
            "sqlite",
            database=f"file:{quote(str(self.file))}",
            query={"mode": mode, "uri": "true"},
        )
        engine = create_engine(location, poolclass=NullPool)
        event.listen(engine, "connect", connected)
        event.listen(engine, "begin", begin)
        return engine


@contextmanager
def _driver_errors(statement: str) -> Iterator[None]:
    """Around what goes past SQLAlchemy to the driver: its errors are as SQLAlchemy's are."""
    try:
        yield
    except sqlite3.Error as error:
        raise DBAPIError(statement, None, error) from None


def values_of(record: Record) -> tuple[object, ...]:
    return (
        record.message_id,
        record.client,
        record.token,
        record.sealed_at,
        record.received_at,
        record.server,
    )


def _durable_pragmas(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN itself, see _begin_writing
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # an acknowledged message survives power loss


def _read_only_pragmas(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")


def _begin_writing(connection: Connection) -> None:
    # IMMEDIATE waits for the other process's commit; an upgrade from a read would fail at once.
    with _driver_errors("BEGIN IMMEDIATE"), closing(connection.connection.cursor()) as cursor:
        cursor.execute("BEGIN IMMEDIATE")


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
