"""The store on PostgreSQL when the database is not well: never an endless wait, nothing lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection

from sealrelay.store import SqlStore, Stored, StoreError, StoreFull, open_store
from tests.support.deployment import wait_until
from tests.support.postgres import Postgres, make_postgres
from tests.unit.test_store import make_record

NEW, OLD = Stored(replayed=False, server="server1"), Stored(replayed=True, server="server1")
LONG = 20
"""Seconds that are plenty for a bounded wait, and few against an endless one."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server to be ill-treated; each test leaves it running."""
    with make_postgres() as server:
        yield server


@pytest.fixture
def url(own: Postgres) -> str:
    return own.make_database()


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    opened = open_store(url)
    opened.migrate()
    opened.add([make_record(0)])
    yield opened
    opened.close()


def database_of(url: str) -> str:
    return urlsplit(url).path[1:]


def setting(store: SqlStore, name: str) -> object:
    with store._transaction() as connection:
        return connection.exec_driver_sql(f"SHOW {name}").scalar_one()


def test_every_commit_is_synced_to_disk_whatever_the_database_would_do(
    own: Postgres, url: str
) -> None:
    own.execute(f"ALTER DATABASE {database_of(url)} SET synchronous_commit = off")
    store = open_store(url)
    assert setting(store, "synchronous_commit") == "on"
    store.close()


def test_server_that_does_not_sync_is_refused(own: Postgres, store: SqlStore) -> None:
    store.close()
    own.stop()
    own.start(fsync="off")
    try:
        with pytest.raises(StoreError, match="fsync is off"):
            store.add([make_record(1)])
    finally:
        own.restart(signal.SIGINT)
    assert store.add([make_record(1)]) == [NEW]


def test_other_defaults_of_the_database_do_no_harm(own: Postgres, url: str) -> None:
    """REPEATABLE READ would not see what another server has just stored."""
    name = database_of(url)
    own.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    store = open_store(url)
    assert setting(store, "transaction_isolation") == "read committed"
    store.close()


def test_each_wait_of_the_database_ends_before_the_coordinator_gives_up(store: SqlStore) -> None:
    """Its attempt_timeout is 2 s."""
    assert setting(store, "lock_timeout") == "1s"
    assert setting(store, "statement_timeout") == "1200ms"


def test_reader_has_time_and_writes_nothing(url: str, store: SqlStore) -> None:
    reader = open_store(url, read_only=True)
    assert reader.count() == 1
    assert setting(reader, "statement_timeout") == "0"
    with pytest.raises(StoreError, match="read-only transaction"):
        reader.add([make_record(1)])
    assert reader.count() == 1
    reader.close()


def test_password_never_shows(own: Postgres, url: str, tmp_path: Path) -> None:
    passfile = tmp_path / "passfile"
    passfile.write_text("*:*:*:*:S3cret\n")
    passfile.chmod(0o600)
    with pytest.raises(StoreError, match="password authentication failed") as refused:
        open_store(url.replace(str(own.passfile), str(passfile))).check()
    assert "S3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(StoreError, match="holds a password") as refused:
        open_store("postgresql://sealrelay:S3cret@127.0.0.1/db")
    assert "S3cret" not in str(refused.value)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_restarted_server_is_used_again_at_once(
    own: Postgres, store: SqlStore, sig: signal.Signals
) -> None:
    """The old connection is dead, which shows only when it is used; nobody is told of it."""
    own.restart(sig)
    assert store.add([make_record(0), make_record(1)]) == [OLD, NEW]
    assert store.count() == 2


def test_stopped_server_is_an_error_at_once(own: Postgres, store: SqlStore) -> None:
    own.stop()
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match="Connection refused"):
                store.add([make_record(1)])
    finally:
        own.start()
    assert store.add([make_record(1)]) == [NEW]


def test_frozen_server_is_given_up_in_bounded_time(own: Postgres, store: SqlStore) -> None:
    own.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"no answer within 1\.5 s"):
            store.add([make_record(1)])
        with pytest.raises(StoreError, match="timeout"):  # nor can it be connected to
            store.add([make_record(1)])
        assert time.monotonic() - began < LONG
    finally:
        own.thaw()
    wait_until(lambda: _is_ready(store), "it answers")
    assert store.add([make_record(1)])[0].server == "server1"
    assert store.count() == 2


def _is_ready(store: SqlStore) -> bool:
    with contextlib.suppress(StoreError):
        store.check()
        return True
    return False


def test_row_that_another_session_is_inserting_is_waited_for_but_not_forever(
    own: Postgres, url: str, store: SqlStore
) -> None:
    columns = "(id, client, token, sealed_at, received_at, server)"
    with own.connect(database_of(url)) as other:
        other.autocommit = False
        other.execute(
            f"INSERT INTO messages {columns} VALUES (%s, 'client1', 't', 1, 1, 'server2')",  # noqa: S608
            [make_record(1).message_id],
        )
        with pytest.raises(StoreError, match="lock timeout"):
            store.add([make_record(1)])
        added: list[list[Stored]] = []
        adding = threading.Thread(target=lambda: added.append(store.add([make_record(1)])))
        adding.start()
        time.sleep(0.2)
        other.commit()
        adding.join(LONG)
    assert added == [[Stored(replayed=True, server="server2")]]


def test_two_servers_that_add_the_same_messages_in_any_order_never_deadlock(
    url: str, store: SqlStore
) -> None:
    errors: list[StoreError] = []
    answers: list[list[Stored]] = []

    def add(rising: bool) -> None:
        own_store = open_store(url)
        try:
            for batch in range(20):
                records = [make_record(1000 * batch + number) for number in range(1, 300)]
                answers.append(own_store.add(records if rising else records[::-1]))
        except StoreError as error:
            errors.append(error)
        finally:
            own_store.close()

    threads = [threading.Thread(target=add, args=(rising,)) for rising in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LONG)
    assert errors == []
    assert sum(not stored.replayed for batch in answers for stored in batch) == 20 * 299
    assert store.count() == 1 + 20 * 299


def test_message_that_is_removed_while_it_comes_again_is_not_acknowledged(
    url: str, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store(url)
    find_servers = store._backend.find_servers

    def remove_first(connection: Connection, ids: Sequence[bytes]) -> dict[bytes, str]:
        assert other.prune(2**60, 10).removed == 1
        return find_servers(connection, ids)

    monkeypatch.setattr(store._backend, "find_servers", remove_first)
    with pytest.raises(StoreError, match="removed while it came again"):
        store.add([make_record(0)])
    monkeypatch.undo()
    other.close()
    assert store.add([make_record(0)]) == [NEW]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_full_disk_refuses_and_loses_nothing(own: Postgres, url: str) -> None:
    disk = own.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,uid=postgres,mode=700", "none", str(disk)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("this machine's root may not mount")
    store = open_store(url)
    try:
        store.migrate()
        own.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        own.execute("ALTER TABLE messages SET TABLESPACE small", database_of(url))
        added = 0
        with contextlib.suppress(StoreFull):
            while added < 1000:
                token = os.urandom(30_000).hex()  # the database would compress what repeats
                store.add([replace(make_record(added), token=token)])
                added += 1
        assert 5 < added < 1000
        assert store.count() == added
        assert store.add([make_record(0)]) == [OLD]
    finally:
        store.close()
        own.execute(f"DROP DATABASE {database_of(url)} WITH (FORCE)")
        own.execute("DROP TABLESPACE small")
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def pair() -> Iterator[tuple[Postgres, Postgres, SqlStore]]:
    """A primary, its synchronous standby, and a store on whichever of them takes writes."""
    with make_postgres() as primary:
        url = primary.make_database()
        standby = primary.copy("standby1")
        primary.replicate_to(standby)
        store = open_store(primary.url_of(database_of(url), standby))
        store.migrate()
        store.add([make_record(0)])
        yield primary, standby, store
        store.close()


def test_promoted_standby_is_followed_and_has_all_that_was_acknowledged(
    pair: tuple[Postgres, Postgres, SqlStore],
) -> None:
    primary, standby, store = pair
    assert store.add([make_record(number) for number in range(1, 50)]) == [NEW] * 49
    primary.stop(signal.SIGKILL)
    with pytest.raises(StoreError, match="Connection refused"):  # and the standby is no help yet
        store.add([make_record(50)])
    standby.promote()
    assert store.add([make_record(49), make_record(50)]) == [OLD, NEW]
    assert store.count() == 51


def test_what_the_standby_lacks_is_not_acknowledged_as_stored_before(
    pair: tuple[Postgres, Postgres, SqlStore],
) -> None:
    """A session that ends while it waits for the standby leaves its rows behind, for all to see."""
    primary, standby, store = pair
    standby.stop()
    for _ in range(3):
        with pytest.raises(StoreError, match="no answer"):
            store.add([make_record(1)])
    database = database_of(primary.url_of("messages1"))
    assert primary.execute("SELECT count(*) FROM messages", database) == [(2,)]
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'sealrelay'"
    wait_until(lambda: primary.execute(sessions) == [(0,)], "those who gave up left no session")
    standby.start()
    wait_until(lambda: _adds(store, 1), "the standby is there again")
    primary.stop(signal.SIGKILL)
    standby.promote()
    assert store.get(make_record(1).message_id) == make_record(1)


def _adds(store: SqlStore, number: int) -> bool:
    with contextlib.suppress(StoreError):
        return store.add([make_record(number)]) == [OLD]
    return False


def test_hosts_whose_failover_would_lose_messages_are_told(own: Postgres, url: str) -> None:
    alone = open_store(url)
    assert alone.find_risk() is None
    several = open_store(own.url_of(database_of(url), own))
    assert "synchronous_standby_names is empty" in str(several.find_risk())
    own.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby1'")
    own.execute("SELECT pg_reload_conf()")
    wait_until(lambda: several.find_risk() is None, "the setting is in force")
    own.execute("ALTER SYSTEM RESET synchronous_standby_names")
    own.execute("SELECT pg_reload_conf()")
    alone.close()
    several.close()
