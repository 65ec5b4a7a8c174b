"""The store on SQLAlchemy Core: SQLite in WAL mode, synced to disk at every commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from sealrelay.store.schema import messages, metadata
from sealrelay.store.turn import Turn

_BUSY_TIMEOUT_MS = 1500  # below the coordinator's attempt_timeout, so that the refusal gets there


class StoreError(Exception):
    """The store did not take or give what was asked; nothing was acknowledged. One line."""


class StoreFull(StoreError):
    """There is no room left to store a message."""


@dataclass(frozen=True)
class Record:
    """A message to be stored."""

    message_id: bytes
    client: str
    token: str
    sealed_at: int
    """Seconds since the epoch."""
    received_at: int
    """Milliseconds since the epoch."""
    server: str


@dataclass(frozen=True)
class Stored:
    """What the store says of one record: it is there, since when, and thanks to whom."""

    replayed: bool
    """Whether it was there before."""
    server: str
    """The server that stored it."""


class SqlStore:
    """Messages in an SQL database. One thread at a time may use an instance."""

    def __init__(self, engine: Engine, turn: Turn | None = None) -> None:
        self._engine = engine
        self._turn = turn
        self._open: Connection | None = None

    def create_schema(self) -> None:
        """Make the tables where they are missing. Several processes may do so at once."""
        with self._transaction() as connection:
            metadata.create_all(connection)

    def add(self, records: Sequence[Record]) -> list[Stored]:
        """Store records in one durable transaction; a record whose id is there already is left out.

        When this returns, every one of them is on disk. Raises StoreFull or StoreError, and then
        none of them was added.
        """
        with self._transaction() as connection:
            return [_add(connection, record) for record in records]

    def check(self) -> None:
        """Ask the database for an answer. Raises StoreError."""
        with self._transaction() as connection:
            connection.execute(select(1))

    def count(self, client: str | None = None) -> int:
        """The number of messages stored, of one client or of all. Raises StoreError."""
        query = select(func.count()).select_from(messages)
        if client is not None:
            query = query.where(messages.c.client == client)
        with self._transaction() as connection:
            return int(connection.execute(query).scalar_one())

    def newest(self, client: str | None = None, limit: int | None = None) -> list[Record]:
        """The newest ``limit`` messages (all by default), oldest first. Raises StoreError."""
        query = select(messages).order_by(messages.c.received_at.desc()).limit(limit)
        if client is not None:
            query = query.where(messages.c.client == client)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [Record(*row) for row in reversed(rows)]

    def get(self, message_id: bytes) -> Record | None:
        """The message of that id, or None. Raises StoreError."""
        query = select(messages).where(messages.c.id == message_id)
        with self._transaction() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Record(*row)

    def end_stopped_writer(self) -> int | None:
        """End a process that was stopped while it wrote, and so keeps all others from writing.

        Returns its process id, or None when there is none. For any thread. Raises PermissionError.
        """
        return None if self._turn is None else self._turn.end_stopped_holder()

    def close(self) -> None:
        """Let go of the connection; the next call opens another."""
        self._disconnect()
        if self._turn is not None:
            self._turn.close()

    def _disconnect(self) -> None:
        if self._open is not None:
            self._open.invalidate()
            self._open.close()
            self._open = None

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._turn or nullcontext():
                if self._open is None:
                    self._open = self._engine.connect()
                with self._open.begin():
                    yield self._open
        except OSError as error:
            raise StoreError(f"the store failed: {error.strerror}") from None
        except DBAPIError as error:
            self._disconnect()  # what state it is in is unknown
            reason = str(error.orig)
            if "disk is full" in reason:
                raise StoreFull("the store has no room left") from None
            raise StoreError(f"the store failed: {reason}") from None


def open_store(url: str, *, read_only: bool = False) -> SqlStore:
    """The store at an SQLAlchemy URL, ``sqlite:////path/to/file``. Nothing is opened yet.

    A read-only store never creates the file. Raises StoreError for a URL that is none of ours.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError("the store's URL cannot be read") from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise StoreError("the store's URL is not of the form sqlite:////path/to/messages.db")
    mode = "ro" if read_only else "rwc"
    location = URL.create(
        "sqlite", database=f"file:{quote(parsed.database)}", query={"mode": mode, "uri": "true"}
    )
    engine = create_engine(location, poolclass=NullPool)
    event.listen(engine, "connect", _read_only_pragmas if read_only else _durable_pragmas)
    event.listen(engine, "begin", _begin_reading if read_only else _begin_writing)
    return SqlStore(engine, None if read_only else Turn(Path(f"{parsed.database}.turn")))


_INSERT = insert(messages).on_conflict_do_nothing(index_elements=["id"])


def _add(connection: Connection, record: Record) -> Stored:
    if connection.execute(_INSERT, _row(record)).rowcount:
        return Stored(replayed=False, server=record.server)
    query = select(messages.c.server).where(messages.c.id == record.message_id)
    return Stored(replayed=True, server=connection.execute(query).scalar_one())


def _row(record: Record) -> dict[str, object]:
    return {
        "id": record.message_id,
        "client": record.client,
        "token": record.token,
        "sealed_at": record.sealed_at,
        "received_at": record.received_at,
        "server": record.server,
    }


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
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
