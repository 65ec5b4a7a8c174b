"""PostgreSQL: commits on its disk (and its synchronous standby's), and never an endless wait.

A database host may be restarted, frozen, cut off, or replaced by its standby at any time. Whatever
happens to it, a call ends with an answer or an error in bounded time, and the next one finds the
server that takes writes among the hosts of the URL. Each wait ends before the coordinator would
give up (to connect: 2 s for each host), but a call may have to wait several times; the coordinator
has asked another server then, before this one answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sealrelay.store.engines import INSERT, UNLESS_THERE, Backend, values_of
from sealrelay.store.records import ConnectionLost, NewToken, Record, StoreError, StoreFull

T = TypeVar("T")

# Each below the coordinator's attempt_timeout (2 s), so that the refusal of one gets there.
_LOCK_TIMEOUT_MS = 1000
_STATEMENT_TIMEOUT_MS = 1200
_ANSWER_TIMEOUT = 1.5
"""Seconds after which a database that says nothing is given up: frozen, or cut off."""
_CANCEL_TIMEOUT = 0.3

_DEFAULTS: dict[str, str | int] = {
    "application_name": "sealrelay",
    "target_session_attrs": "read-write",  # of several hosts, the one that is no standby
    "connect_timeout": 2,  # s for each host, the shortest that libpq knows
    "keepalives_idle": 1,  # s; a host that is gone is noticed while nothing is asked, too
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 1500,  # ms
}

_SESSION = {
    # An acknowledged message is on the disk, and on that of a synchronous standby if there is one.
    "synchronous_commit": "on",
    # Else a message that another server has just stored could not be seen after the conflict.
    "default_transaction_isolation": r"read\ committed",
}

# One statement, so one round trip, and a transaction of its own. Values travel as one array for
# each column, in binary: for 64 rows 8 µs of this process's time each instead of 64.
_ARRAYS = "%b::bytea[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[]"
_INSERT_ALL = f"{INSERT} SELECT * FROM unnest({_ARRAYS}) {UNLESS_THERE} RETURNING id"  # noqa: S608

_REPLACE_ALL = """
UPDATE messages SET token = given.new
FROM unnest(%b::bytea[], %b::text[], %b::text[]) AS given (id, old, new)
WHERE messages.id = given.id AND messages.token = given.old
"""

# The lock is there for its side effect: it makes this a transaction with a commit of its own, which
# waits for the synchronous standby. A row can be visible that is not there yet, when the session
# that stored it was ended while it waited; such a row must not be acknowledged as stored before.
_SERVERS = "SELECT id, server FROM messages WHERE id = ANY(%b::bytea[]) ORDER BY id FOR KEY SHARE"

_MIGRATION_LOCK = 0x5EA1_4E1A  # any number that other users of the database do not take


class NoAnswer(psycopg.OperationalError):
    """The database said nothing for too long."""


class PostgresBackend(Backend):
    """A PostgreSQL database at a libpq URL, perhaps of several hosts."""

    def __init__(self, url: str, *, read_only: bool) -> None:
        """Raises StoreError, which never quotes the URL."""
        try:
            self._parameters = conninfo_to_dict(url)
        except psycopg.Error:
            raise StoreError("the store's URL cannot be read") from None
        if "password" in self._parameters:
            raise StoreError("the store's URL holds a password; put it in a passfile")
        self._read_only = read_only
        # People read at leisure; a commit is awaited by somebody who gives up soon.
        self.engine = self._make_engine(bounded=not read_only, autocommit=not read_only)

    def insert(self, connection: Connection, records: Sequence[Record]) -> set[bytes]:
        columns = tuple(map(list, zip(*map(values_of, records), strict=True)))
        return {row[0] for row in connection.exec_driver_sql(_INSERT_ALL, columns)}

    def find_servers(self, connection: Connection, ids: Sequence[bytes]) -> dict[bytes, str]:
        return dict(connection.exec_driver_sql(_SERVERS, (list(ids),)).tuples().all())

    def replace_tokens(self, connection: Connection, tokens: Sequence[NewToken]) -> int:
        rows = [(token.message_id, token.old, token.new) for token in tokens]
        columns = tuple(map(list, zip(*rows, strict=True)))
        return connection.exec_driver_sql(_REPLACE_ALL, columns).rowcount

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        engine = self._make_engine(bounded=False, autocommit=False)
        with engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            # Whatever waits behind a change of the table waits as long as the change itself does.
            connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
            yield connection

    def size_bytes(self, connection: Connection) -> int:
        return int(
            connection.execute(text("SELECT pg_total_relation_size('messages')")).scalar_one()
        )

    def find_risk(self, connection: Connection) -> str | None:
        query = text("SELECT current_setting('synchronous_standby_names')")
        if "," in str(self._parameters.get("host", "")) and not connection.scalar(query):
            return (
                "The store has several hosts, but synchronous_standby_names is empty there: "
                "a failover may lose acknowledged messages"
            )
        return None

    def explain(self, error: DBAPIError) -> StoreError:
        cause = error.orig
        if isinstance(cause, psycopg.errors.DiskFull):
            return StoreFull("the store has no room left")
        kind = ConnectionLost if error.connection_invalidated else StoreError
        if isinstance(cause, NoAnswer):  # somebody has waited for it long enough
            kind = StoreError
        return kind(f"the store failed: {' '.join(str(cause).split())}")

    def _make_engine(self, *, bounded: bool, autocommit: bool) -> Engine:
        session = dict(_SESSION)
        if bounded:
            session["lock_timeout"] = f"{_LOCK_TIMEOUT_MS}ms"
            session["statement_timeout"] = f"{_STATEMENT_TIMEOUT_MS}ms"
        options = [str(self._parameters.get("options", ""))]
        options += [f"-c {name}={value}" for name, value in session.items()]
        parameters = {**_DEFAULTS, **self._parameters, "options": " ".join(options)}
        conninfo = make_conninfo("", **parameters)

        def connect() -> psycopg.Connection[Any]:
            connection = _PatientConnection.connect(conninfo, autocommit=True)
            if bounded:
                connection.patience = _ANSWER_TIMEOUT
            connection.read_only = self._read_only or None
            _refuse_loss(connection)
            return connection

        return create_engine(
            "postgresql+psycopg://",
            creator=connect,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT" if autocommit else "READ COMMITTED",
            use_native_hstore=False,
        )


def _refuse_loss(connection: psycopg.Connection[Any]) -> None:
    """Refuse a server that acknowledges what is not on its disk. Raises StoreError."""
    try:
        row = connection.execute("SELECT current_setting('fsync')").fetchone()
    except psycopg.Error:
        connection.close()
        raise
    if row == ("off",):
        connection.close()
        raise StoreError("the store would lose messages: fsync is off on the database host")


# The one that waits in C: gevent's patches do not reach it, and it is not to be reached: this
# runs in a thread that nobody else waits in. (Others would run an event loop in that thread.)
_wait = getattr(waiting, "wait_c", waiting.wait)


class _PatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when the database says nothing for so long.

    The database's own timeouts do not help where it is frozen, nor where it has committed and waits
    for its standby.
    """

    patience: float | None = None
    """Seconds, or None to wait forever."""

    def wait(
        self,
        gen: Generator[Any, Any, T],
        interval: float = 0.1,
        timeout: float | None = None,
    ) -> T:
        if self.patience is None:
            return super().wait(gen, interval)
        try:
            result: T = _wait(_bound(gen, self.patience), self.pgconn.socket, interval)
        except NoAnswer:
            # Else a session that waits for a standby would stay there, and so would the next ones
            # until there is no room for more. The answer does not matter any more.
            with contextlib.suppress(psycopg.Error):
                self.cancel_safe(timeout=_CANCEL_TIMEOUT)
            self.pgconn.finish()
            raise
        return result


def _bound(gen: Generator[Any, Any, T], patience: float) -> Generator[Any, Any, T]:
    """``gen``, which waits for the database, but no longer than ``patience`` seconds."""
    deadline = time.monotonic() + patience
    try:
        state = next(gen)
        while True:
            ready = yield state
            if not ready and time.monotonic() >= deadline:
                raise NoAnswer(f"no answer within {patience:g} s")
            state = gen.send(ready)
    except StopIteration as done:
        result: T = done.value
        return result
