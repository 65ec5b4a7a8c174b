"""An SQLite store whose files are moved, replaced or removed under it acknowledges nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from sealrelay.store import SqlStore, StoreError, StoreMoved, open_store
from tests.support.moves import MOVES, Move
from tests.unit.test_store import make_record, url_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder of its own, with a link on the way to it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "store").symlink_to("real")
    return tmp_path / "store" / "messages.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    opened = open_store(url_of(path))
    opened.migrate()
    opened.add([make_record(0)])
    yield opened
    opened.close()


def count(path: Path) -> int:
    """Messages that whoever opens the database now finds."""
    reader = open_store(url_of(path), read_only=True)
    try:
        return reader.count()
    finally:
        reader.close()


def copy_of(path: Path) -> Path:
    """By another process: to open and close it here would drop SQLite's locks, see fcntl(2)."""
    copy = path.resolve().parent.with_name("copy.db")
    subprocess.run(["cp", path, copy], check=True)
    return copy


@pytest.mark.parametrize("move", MOVES)
def test_nothing_is_acknowledged_until_the_files_are_back(
    move: Move, store: SqlStore, path: Path
) -> None:
    with move(path) as named:
        for ask in (SqlStore.check, SqlStore.size_bytes, lambda _: store.add([make_record(1)])):
            with pytest.raises(StoreMoved) as refusal:
                ask(store)
            text = str(refusal.value)
            assert named in text
            assert "put the former one back; for another, stop all servers first" in text
    store.check()
    assert [answer.replayed for answer in store.add([make_record(0), make_record(1)])] == [
        True,
        False,
    ]
    store.close()
    assert count(path) == 2


@pytest.mark.parametrize("move", MOVES)
def test_what_is_committed_while_the_files_are_moved_is_not_acknowledged(
    move: Move, store: SqlStore, path: Path
) -> None:
    moving = move(path)

    def store_and_move(connection: Connection) -> None:
        store._backend.insert(connection, [make_record(1)])
        moving.__enter__()

    with pytest.raises(StoreMoved):
        store._run(store_and_move)
    moving.__exit__(None, None, None)
    assert [answer.replayed for answer in store.add([make_record(1)])] == [True]


def test_moved_store_is_not_written_to(store: SqlStore, path: Path, tmp_path: Path) -> None:
    """It may be what a backup is being made of."""
    path.parent.resolve().rename(tmp_path / "elsewhere")
    files = sorted((tmp_path / "elsewhere").iterdir())
    before = {file: file.read_bytes() for file in files if file.suffix != ".db-shm"}
    for _ in range(3):
        with pytest.raises(StoreMoved, match="is gone"):
            store.add([make_record(1)])
    assert sorted((tmp_path / "elsewhere").iterdir()) == files
    assert {file: file.read_bytes() for file in before} == before


def test_no_file_is_made_in_place_of_one_that_was_removed(store: SqlStore, path: Path) -> None:
    store.close()
    path.unlink()
    with pytest.raises(StoreError, match="the store failed: No such file or directory"):
        store.add([make_record(1)])
    assert not path.exists()


def test_store_that_has_to_connect_anew_takes_no_other_file(store: SqlStore, path: Path) -> None:
    """What the former one has acknowledged since the other one was made would be missing."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.add([make_record(1)])
    assert store._open is None
    other.close()
    backup = copy_of(path)
    path.unlink()
    # Nobody has the former one open; its inode must not be the next file's all the same.
    for number in range(20):
        path.with_name(f"{number}").write_bytes(backup.read_bytes())
        path.with_name(f"{number}").replace(path)
        with pytest.raises(StoreMoved, match=r"messages\.db was replaced"):
            store.add([make_record(1)])
    store.close()
    store.add([make_record(1)])  # as whoever starts, it takes what is there


def test_database_may_be_a_link(path: Path, tmp_path: Path) -> None:
    """SQLite has the other files beside what the link leads to."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    store = open_store(url_of(link))
    store.migrate()
    store.add([make_record(0)])
    link.unlink()
    with pytest.raises(StoreMoved, match=f"{link} is gone"):
        store.check()
    link.symlink_to(path)
    store.check()
    path.with_name("messages.db-wal").unlink()
    with pytest.raises(StoreMoved, match=r"messages\.db-wal is gone"):
        store.check()
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("holds_a_store", [False, True])
def test_file_system_mounted_over_the_folder_is_noticed(
    holds_a_store: bool, store: SqlStore, path: Path
) -> None:
    folder = path.parent
    backup = copy_of(path)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine's root may not mount")
    try:
        if holds_a_store:
            path.write_bytes(backup.read_bytes())
        with pytest.raises(StoreMoved, match="was replaced" if holds_a_store else "is gone"):
            store.add([make_record(1)])
    finally:
        subprocess.run(["umount", folder], check=True)
    store.add([make_record(1)])
    assert count(path) == 2


def test_looking_at_the_files_keeps_the_locks(store: SqlStore, path: Path) -> None:
    """To open and close one of them would drop them, see fcntl(2)."""
    store.close()
    other = sqlite3.connect(path, isolation_level=None, timeout=0)

    files = store._backend.files
    assert files is not None

    def try_to_write(_: Connection) -> None:
        files.check()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    store._run(try_to_write)
    other.close()
