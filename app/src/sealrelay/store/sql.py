"""The store: queries common to the databases, on SQLAlchemy Core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    func,
    inspect,
    or_,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from sealrelay.store.engines import Backend, make_backend
from sealrelay.store.records import (
    ConnectionLost,
    NewToken,
    Pruned,
    Record,
    Replaced,
    SchemaOutdated,
    Stored,
    StoreError,
)
from sealrelay.store.schema import REVISION, REVISION_TABLE, messages

T = TypeVar("T")

_Place = tuple[int, bytes]
"""Where a message stands in the order of arrival: when it was received (ms), and its id."""

_WINDOW = 500
"""Messages read at once when they are listed."""

# By name: a newer release may have added columns.
_RECORD = (
    messages.c.id,
    messages.c.client,
    messages.c.token,
    messages.c.sealed_at,
    messages.c.received_at,
    messages.c.server,
)


class SqlStore:
    """Messages in an SQL database. One thread at a time may use an instance."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._open: Connection | None = None

    @property
    def file(self) -> Path | None:
        """The database's file, where it is one of this host's."""
        return self._backend.file

    def revision(self) -> str | None:
        """The number of the newest migration that was applied here, if any. Raises StoreError."""
        if self._is_missing():
            return None
        return self._run(_revision)

    def check_schema(self) -> None:
        """Raises SchemaOutdated when the tables are older than this release needs, or StoreError.

        Newer ones are fine: migrations only add.
        """
        is_missing = self._is_missing()
        revision = self.revision()
        if revision is None or revision < REVISION:
            where = f", or put {self.file} back if it was moved" if is_missing else ""
            raise SchemaOutdated(
                f"the store's schema is {'missing' if revision is None else f'at {revision}'}, "
                f"this release needs {REVISION}; run `sealrelay migrate`{where}"
            )

    def migrate(self) -> list[str]:
        """Apply the migrations that are due; returns their numbers. Raises StoreError.

        All or none of them. Several hosts may do so at once.
        """
        from sealrelay.store.migrate import apply_migrations  # Alembic: no service needs it

        with self._turn(), self._backend.migration() as connection:
            revision = _revision(connection)
            if revision is not None and revision > REVISION:
                return []
            return apply_migrations(connection, revision)

    def add(self, records: Sequence[Record]) -> list[Stored]:
        """Store records in one durable transaction; a record whose id is there already is left out.

        When this returns, every one of them is on disk. Raises StoreFull or StoreError.
        """
        # Of an id that comes twice, the first; in order of ids, or two servers could deadlock.
        firsts = {record.message_id: record for record in reversed(records)}
        ids = sorted(firsts)

        def insert(connection: Connection) -> dict[bytes, str]:
            new = self._backend.insert(connection, [firsts[key] for key in ids])
            there = [key for key in ids if key not in new]
            servers = self._backend.find_servers(connection, there) if there else {}
            if len(servers) != len(there):
                # Removed after it was in the way of being inserted: it is not stored any more, nor
                # was it now. Who sends it again learns what becomes of it.
                raise StoreError("a message was removed while it came again")
            return servers

        if not records:
            return []
        replayed = self._run(insert)
        return [
            Stored(
                replayed=record.message_id in replayed or record is not firsts[record.message_id],
                server=replayed.get(record.message_id, firsts[record.message_id].server),
            )
            for record in records
        ]

    def check(self) -> None:
        """Ask the database for an answer. Raises StoreError."""
        self._run(lambda connection: connection.execute(select(1)))

    def count(self, client: str | None = None) -> int:
        """The number of messages stored, of one client or of all. Raises StoreError."""
        query = select(func.count()).select_from(messages)
        if client is not None:
            query = query.where(messages.c.client == client)
        return self._run(lambda connection: int(connection.execute(query).scalar_one()))

    def count_before(self, before_ms: int) -> int:
        """The number of messages received before a time (ms since the epoch). Raises StoreError."""
        query = select(func.count()).where(messages.c.received_at < before_ms)
        return self._run(lambda connection: int(connection.execute(query).scalar_one()))

    def prune(self, before_ms: int, limit: int) -> Pruned:
        """Remove the oldest messages, at most ``limit``, of those received before a time.

        In one transaction. Whoever gives the time (ms since the epoch) sees to it that no token of
        them would be accepted any more. Raises StoreError.
        """
        oldest = (
            select(messages.c.id)
            .where(messages.c.received_at < before_ms)
            .order_by(messages.c.received_at)
            .limit(limit)
            .with_for_update(skip_locked=True)  # another host's prune has them; SQLite needs none
        )
        query = delete(messages).where(messages.c.id.in_(oldest))

        def remove(connection: Connection) -> tuple[int, float, float]:
            began = time.monotonic()  # from here on, those who want to write wait for us
            removed = connection.execute(query).rowcount
            return removed, began, time.monotonic()

        removed, began, deleted = self._run(remove)
        return Pruned(removed, deleting=deleted - began, holding=time.monotonic() - began)

    def replace_tokens(self, tokens: Sequence[NewToken]) -> Replaced:
        """Give messages other tokens in one transaction; nothing else of them changes.

        A message that is gone, or has another token than the old one, is left alone. Raises
        StoreError.
        """

        def replace(connection: Connection) -> tuple[int, float, float]:
            began = time.monotonic()  # from here on, those who want to write wait for us
            replaced = self._backend.replace_tokens(connection, tokens)
            return replaced, began, time.monotonic()

        replaced, began, done = self._run(replace)
        return Replaced(replaced, replacing=done - began, holding=time.monotonic() - began)

    def confirm(self, message_ids: Sequence[bytes]) -> None:
        """Return when whatever was seen of these messages is as durable as a new one would be.

        What can be seen may not have reached a synchronous standby yet. Raises StoreError, also
        when none of them is there.
        """
        if not self._run(lambda connection: self._backend.find_servers(connection, message_ids)):
            raise StoreError("the messages were removed meanwhile")

    def size_bytes(self) -> int:
        """The bytes that the store takes up, space to be used again included. Raises StoreError."""
        return self._run(self._backend.size_bytes)

    def find_risk(self) -> str | None:
        """What an administrator should know of how safe messages are here. Raises StoreError."""
        return self._run(self._backend.find_risk)

    def newest(self, client: str | None = None, limit: int | None = None) -> Iterator[Record]:
        """The newest ``limit`` messages (all by default), oldest first. Raises StoreError.

        Reads some at a time, each time in a transaction of its own.
        """
        query = select(*_RECORD)
        if client is not None:
            query = query.where(messages.c.client == client)
        start = None if limit is None else self._nth_newest(query, limit)
        yield from self._list(
            query, query if start is None else query.where(_after(start, included=True))
        )

    def since(self, received_at: int) -> Iterator[Record]:
        """The messages received since a time (ms since the epoch), oldest first.

        Reads some at a time, each time in a transaction of its own. Raises StoreError.
        """
        query = select(*_RECORD)
        return self._list(query, query.where(messages.c.received_at >= received_at))

    def _list(self, query: Select[Any], first: Select[Any]) -> Iterator[Record]:
        """What ``first`` finds, and all that comes after it in ``query``, oldest first."""

        def ordered(part: Select[Any]) -> Select[Any]:
            return part.order_by(messages.c.received_at, messages.c.id).limit(_WINDOW)

        following = ordered(first)
        while True:
            window = [Record(*row) for row in self._run(_fetch(following))]
            yield from window
            if len(window) < _WINDOW:
                return
            following = ordered(
                query.where(_after((window[-1].received_at, window[-1].message_id)))
            )

    def page(self, after: Record | None, until: int, limit: int) -> list[Record]:
        """At most ``limit`` messages of those received up to a time (ms since the epoch).

        The oldest that come after another one, or of all. Raises StoreError.
        """
        query = select(*_RECORD).where(messages.c.received_at <= until)
        if after is not None:
            query = query.where(_after((after.received_at, after.message_id)))
        query = query.order_by(messages.c.received_at, messages.c.id).limit(limit)
        return [Record(*row) for row in self._run(_fetch(query))]

    def get(self, message_id: bytes) -> Record | None:
        """The message of that id, or None. Raises StoreError."""
        query = select(*_RECORD).where(messages.c.id == message_id)
        rows = self._run(_fetch(query))
        return Record(*rows[0]) if rows else None

    def end_stopped_writer(self) -> int | None:
        """End a process that was stopped while it wrote, and so keeps all others from writing.

        Returns its process id, or None when there is none. For any thread. Raises PermissionError.
        """
        turn = self._backend.turn
        return None if turn is None else turn.end_stopped_holder()

    def close(self) -> None:
        """Let go of the connection; the next call opens another."""
        self._disconnect()
        if self._backend.files is not None:
            self._backend.files.close()
        if self._backend.turn is not None:
            self._backend.turn.close()

    def _disconnect(self) -> None:
        if self._open is not None:
            self._open.invalidate()
            self._open.close()
            self._open = None

    def _is_missing(self) -> bool:
        """Whether there is no file yet; opening it would make one."""
        if self.file is None:
            return False
        try:
            self.file.stat()
        except FileNotFoundError:
            return True
        except OSError:  # the database itself tells it better
            return False
        return False

    def _run(self, work: Callable[[Connection], T]) -> T:
        """Do some work in a transaction.

        On a connection that was opened before, and that turns out to be broken now, it is done once
        more on another one: all that is done here may be done twice.
        """
        reused = self._open is not None
        try:
            with self._transaction() as connection:
                return work(connection)
        except ConnectionLost:
            if not reused:
                raise
        with self._transaction() as connection:
            return work(connection)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        files = self._backend.files
        with self._turn():
            if self._open is None:
                if files is not None:
                    files.hold()
                self._open = self._backend.engine.connect()
            with self._open.begin():
                if files is not None:
                    files.check()
                yield self._open
            if files is not None:
                files.check()  # what was committed meanwhile is not to be acknowledged

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This store's turn, where there are turns; raises the store's errors, not a driver's."""
        try:
            with self._backend.turn or nullcontext():
                yield
        except OSError as error:
            raise StoreError(f"the store failed: {error.strerror}") from None
        except DBAPIError as error:
            self._disconnect()  # what state it is in is unknown
            raise self._backend.explain(error) from None

    def _nth_newest(self, query: Select[Any], number: int) -> _Place | None:
        newest_first = query.with_only_columns(messages.c.received_at, messages.c.id)
        newest_first = newest_first.order_by(messages.c.received_at.desc(), messages.c.id.desc())
        rows = self._run(_fetch(newest_first.offset(number - 1).limit(1)))
        return (rows[0].received_at, rows[0].id) if rows else None


def open_store(url: str, *, read_only: bool = False) -> SqlStore:
    """The store at a URL: ``sqlite:////path/to/file`` or ``postgresql://user@host/database``.

    Nothing is opened yet. Of a PostgreSQL URL's query, all of libpq's parameters are taken.

    A read-only store never creates the file. Raises StoreError for a URL that is none of ours.
    """
    return SqlStore(make_backend(url, read_only=read_only))


def _fetch(query: Select[Any]) -> Callable[[Connection], Sequence[Row[Any]]]:
    return lambda connection: connection.execute(query).all()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    query = text(f"SELECT version_num FROM {REVISION_TABLE}")  # noqa: S608 - a constant
    revision: str | None = connection.execute(query).scalar_one_or_none()
    return revision


def _after(place: _Place, *, included: bool = False) -> ColumnElement[bool]:
    """Only what was received after a place in the order of the index, so that it can be used."""
    received_at, message_id = place
    later = messages.c.id >= message_id if included else messages.c.id > message_id
    return and_(
        messages.c.received_at >= received_at,
        or_(messages.c.received_at > received_at, later),
    )
