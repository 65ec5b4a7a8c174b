"""The store on a real SQLite file and on a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from sealrelay.store import Record, SqlStore, Stored, StoreError, StoreFull, open_store


def make_record(number: int, client: str = "client1", size: int = 100) -> Record:
    return Record(
        message_id=number.to_bytes(32, "big"),
        client=client,
        token="t" * size,
        sealed_at=1_800_000_000,
        received_at=1_800_000_000_000 + number,
        server="server1",
    )


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


@pytest.fixture
def store(store_url: str) -> Iterator[SqlStore]:
    opened = open_store(store_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def sqlite(path: Path) -> Iterator[SqlStore]:
    opened = open_store(url_of(path))
    opened.migrate()
    yield opened
    opened.close()


def test_record_is_given_back_as_it_was_added(store: SqlStore) -> None:
    record = make_record(1)
    assert [answer.replayed for answer in store.add([record])] == [False]
    assert store.get(record.message_id) == record
    assert store.get(bytes(32)) is None


def test_record_is_there_for_another_process_at_once(store: SqlStore, store_url: str) -> None:
    store.add([make_record(1)])
    other = open_store(store_url, read_only=True)
    assert other.count() == 1
    other.close()


def test_same_id_is_stored_once(store: SqlStore) -> None:
    first = make_record(1)
    store.add([first])
    again = Record(first.message_id, "client2", "other", 1, 2, "server2")
    assert store.add([again]) == [Stored(replayed=True, server="server1")]
    assert store.count() == 1
    assert store.get(first.message_id) == first


def test_same_id_twice_in_one_batch_is_stored_once(store: SqlStore) -> None:
    batch = [make_record(1), make_record(2), make_record(1), make_record(1)]
    assert [answer.replayed for answer in store.add(batch)] == [False, False, True, True]
    assert store.count() == 2


def test_nothing_to_add_is_fine(store: SqlStore) -> None:
    assert store.add([]) == []


def test_messages_are_listed_oldest_first_by_client_and_limit(store: SqlStore) -> None:
    store.add([make_record(3), make_record(1), make_record(2, "client2"), make_record(4)])
    assert [record.message_id[-1] for record in store.newest()] == [1, 2, 3, 4]
    assert [record.message_id[-1] for record in store.newest(limit=2)] == [3, 4]
    assert [record.message_id[-1] for record in store.newest("client1", limit=2)] == [3, 4]
    assert [record.message_id[-1] for record in store.newest("client2")] == [2]
    assert list(store.newest("nobody")) == []
    assert (store.count(), store.count("client1"), store.count("nobody")) == (4, 3, 0)


def test_all_messages_are_listed_however_many_and_of_whatever_time(store: SqlStore) -> None:
    """More than are read at once, and many of the same millisecond."""
    records = [replace(make_record(number), received_at=number // 700) for number in range(1600)]
    store.add(records)
    assert list(store.newest()) == records
    assert list(store.newest(limit=1)) == records[-1:]
    assert list(store.newest(limit=1201)) == records[-1201:]
    assert list(store.newest(limit=5000)) == records


def test_messages_since_a_time_are_listed_over_several_windows(store: SqlStore) -> None:
    records = [make_record(number) for number in range(1200)]
    store.add(records)
    since = records[150].received_at
    assert list(store.since(since)) == [each for each in records if each.received_at >= since]
    assert list(store.since(records[-1].received_at + 1)) == []


def test_listing_goes_on_while_messages_come_and_go(store: SqlStore) -> None:
    store.add([make_record(number) for number in range(1200)])
    listed = store.newest()
    seen = [next(listed)]
    store.prune(make_record(100).received_at, 1000)
    store.add([make_record(5000)])
    seen += listed
    assert len(set(seen)) == len(seen)
    assert seen[-1] == make_record(5000)
    assert {make_record(number) for number in range(500, 1200)} <= set(seen)


def test_oldest_messages_are_removed_first_and_no_more_than_asked_for(store: SqlStore) -> None:
    store.add([make_record(number) for number in (3, 1, 4, 2, 5)])
    assert store.count_before(make_record(5).received_at) == 4
    assert store.prune(make_record(5).received_at, 3).removed == 3
    assert [record.message_id[-1] for record in store.newest()] == [4, 5]
    assert store.prune(make_record(5).received_at, 3).removed == 1
    assert store.prune(make_record(5).received_at, 3).removed == 0
    assert list(store.newest()) == [make_record(5)]
    assert store.add([make_record(1), make_record(5)]) == [
        Stored(replayed=False, server="server1"),
        Stored(replayed=True, server="server1"),
    ]


def test_waiting_for_others_is_not_counted_as_removing(sqlite: SqlStore, path: Path) -> None:
    """Else pruning would get slower, the busier the servers are."""
    sqlite.add([make_record(number) for number in range(3)])
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    released: list[float] = []

    def release() -> None:
        released.append(time.monotonic())
        other.execute("ROLLBACK")

    timer = threading.Timer(0.5, release)
    timer.start()
    pruned = sqlite.prune(make_record(2).received_at, 10)
    ended = time.monotonic()
    timer.join()
    other.close()
    assert pruned.removed == 2
    assert 0 < pruned.deleting <= pruned.holding <= ended - released[0]


def test_size_grows_with_what_is_stored(store: SqlStore) -> None:
    before = store.size_bytes()
    store.add([replace(make_record(n), token=os.urandom(2000).hex()) for n in range(100)])
    assert store.size_bytes() >= before + 200_000


_ADD_ALL = """
import json, sys
from sealrelay.store import Record, open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
new = []
for number in range(100):
    record = Record(number.to_bytes(32, "big"), "client1", "t", 1, 1, sys.argv[2])
    if not store.add([record])[0].replayed:
        new.append(number)
print(json.dumps(new))
"""


def test_of_two_processes_that_add_one_id_exactly_one_is_told_that_it_is_new(
    store: SqlStore, store_url: str
) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD_ALL, store_url, f"server{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    new = [json.loads(writer.communicate(timeout=120)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(new[0] + new[1]) == list(range(100))
    by_server = [int(record.server == "server1") for record in store.newest()]
    assert len(by_server) == 100
    assert sum(by_server) == len(new[0])


def _pragma(store: SqlStore, name: str) -> object:
    with store._transaction() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar_one()


def test_every_commit_is_synced_to_disk(sqlite: SqlStore) -> None:
    """FULL is 2; with NORMAL a commit in WAL mode can be lost when the power fails."""
    assert _pragma(sqlite, "journal_mode") == "wal"
    assert _pragma(sqlite, "synchronous") == 2
    sqlite.close()  # and so after it has connected once more
    assert _pragma(sqlite, "synchronous") == 2


def test_a_locked_database_is_waited_for(sqlite: SqlStore, path: Path) -> None:
    """Not for so long, though, that the coordinator gives up first (attempt_timeout, 2 s)."""
    assert 1000 <= int(str(_pragma(sqlite, "busy_timeout"))) < 2000


def test_locked_database_is_an_error_and_then_it_works_again(sqlite: SqlStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        sqlite.add([make_record(1)])
    other.execute("ROLLBACK")
    other.close()
    assert [answer.replayed for answer in sqlite.add([make_record(1)])] == [False]


@pytest.mark.parametrize(
    "ask",
    [SqlStore.count, SqlStore.check, SqlStore.size_bytes, lambda store: list(store.newest())],
    ids=["count", "check", "size_bytes", "newest"],
)
def test_read_only_store_never_creates_the_file(
    path: Path, ask: Callable[[SqlStore], object]
) -> None:
    reader = open_store(url_of(path), read_only=True)
    with pytest.raises(StoreError, match="unable to open"):
        ask(reader)
    reader.close()
    assert not path.exists()


def test_read_only_store_cannot_add(sqlite: SqlStore, path: Path) -> None:
    reader = open_store(url_of(path), read_only=True)
    with pytest.raises(StoreError, match="readonly"):
        reader.add([make_record(1)])
    reader.close()
    assert sqlite.count() == 0


def test_reader_sees_what_is_stored_while_a_writer_is_at_work(sqlite: SqlStore, path: Path) -> None:
    sqlite.add([make_record(1)])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    reader = open_store(url_of(path), read_only=True)
    assert reader.count() == 1
    reader.close()
    writer.close()


def test_file_of_any_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a b%20c#d&mode=ro.db"
    store = open_store(url_of(path))
    store.migrate()
    store.close()
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}.turn"}


@pytest.mark.parametrize(
    "url",
    ["", "messages.db", "sqlite://", "sqlite:///", "mysql://h/db", "x://", "postgresql://h/db?x=y"],
)
def test_url_of_anything_else_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="store's URL"):
        open_store(url)


def test_full_store_takes_none_of_a_batch_and_works_when_there_is_room(sqlite: SqlStore) -> None:
    sqlite.add([make_record(1)])
    pages = int(str(_pragma(sqlite, "page_count")))
    _pragma(sqlite, f"max_page_count = {pages + 4}")
    with pytest.raises(StoreFull):
        sqlite.add([make_record(number, size=2000) for number in range(2, 50)])
    assert sqlite.count() == 1  # the connection is a new one now, and its limit the default
    assert len(sqlite.add([make_record(2)])) == 1
    assert sqlite.count() == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine's root may not mount")
    try:
        store = open_store(url_of(disk / "messages.db"))
        store.migrate()
        added = 0
        with contextlib.suppress(StoreFull):
            while added < 1000:
                store.add([make_record(added, size=4000)])
                added += 1
        assert 5 < added < 1000
        assert store.count() == added
        assert [answer.replayed for answer in store.add([make_record(0)])] == [True]
        store.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_reading_as_root_leaves_files_that_the_service_can_write(tmp_path: Path) -> None:
    """``sealrelay messages`` as root, while the servers are down, must not lock them out."""
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "messages.db"
    store = open_store(url_of(path))
    store.migrate()
    store.add([make_record(1)])
    store.close()
    for file in (folder, *folder.iterdir()):
        os.chown(file, 12345, 12345)
    reader = open_store(url_of(path), read_only=True)
    assert reader.count() == 1
    owners = {file.name: file.stat().st_uid for file in folder.iterdir()}
    reader.close()
    assert set(owners.values()) == {12345}, owners
