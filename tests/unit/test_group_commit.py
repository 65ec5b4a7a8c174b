"""Group commit: what waits during one commit forms the next."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import gevent
import pytest

from sealrelay.store import GroupCommit, Record, SqlStore, Stored, StoreError, open_store
from tests.unit.test_store import make_record, url_of

T = TypeVar("T")


class Commits:
    """The sizes of all transactions that really went to the database, in their order."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.before: Callable[[Sequence[Record]], None] = lambda records: None


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    seen = Commits()
    add = SqlStore.add

    def watched(store: SqlStore, records: Sequence[Record]) -> list[Stored]:
        seen.sizes.append(len(records))
        seen.threads.add(threading.get_ident())
        seen.before(records)
        return add(store, records)

    monkeypatch.setattr(SqlStore, "add", watched)
    return seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


@pytest.fixture
def writer(path: Path, commits: Commits) -> Iterator[GroupCommit]:
    group = GroupCommit(open_store(url_of(path)), max_records=50)
    group.run(SqlStore.migrate)
    yield group
    group.run(SqlStore.close)


def _add_at_once(writer: GroupCommit, batches: Sequence[Sequence[Record]]) -> list[object]:
    """Add batches from a greenlet each; what each was told, an error included."""

    def add(batch: Sequence[Record]) -> object:
        try:
            return writer.add(batch)
        except StoreError as error:
            return error

    greenlets = [gevent.spawn(add, batch) for batch in batches]
    gevent.joinall(greenlets, timeout=60, raise_error=True)
    assert all(greenlet.dead for greenlet in greenlets)
    return [greenlet.value for greenlet in greenlets]


def _value_of(greenlet: gevent.Greenlet[..., T]) -> T:
    value = greenlet.get(timeout=60)
    assert value is not None
    return value


def test_single_add_is_committed_at_once(writer: GroupCommit, commits: Commits) -> None:
    assert writer.add([make_record(1)]) == [Stored(replayed=False, server="server1")]
    assert commits.sizes == [1]
    assert writer.run(SqlStore.count) == 1


def test_adds_that_wait_together_share_a_commit(writer: GroupCommit, commits: Commits) -> None:
    answers = _add_at_once(writer, [[make_record(number)] for number in range(40)])
    assert answers == [[Stored(replayed=False, server="server1")]] * 40
    assert sum(commits.sizes) == 40
    assert len(commits.sizes) <= 4
    assert writer.run(SqlStore.count) == 40


def test_commit_is_bounded_and_no_batch_is_split(writer: GroupCommit, commits: Commits) -> None:
    batches = [[make_record(100 * number + part) for part in range(30)] for number in range(5)]
    batches.append([make_record(10_000 + part) for part in range(80)])
    _add_at_once(writer, batches)
    assert sorted(commits.sizes) == [30, 30, 30, 30, 30, 80]
    assert writer.run(SqlStore.count) == 230


def test_each_is_told_of_its_own_records(writer: GroupCommit, commits: Commits) -> None:
    writer.add([make_record(2)])
    answers = _add_at_once(
        writer,
        [[make_record(1), make_record(2)], [make_record(3)], [make_record(3), make_record(4)], []],
    )
    new, old = Stored(replayed=False, server="server1"), Stored(replayed=True, server="server1")
    assert answers == [[new, old], [new], [old, new], []]


def test_database_is_used_from_one_thread_that_is_not_ours(
    writer: GroupCommit, commits: Commits
) -> None:
    _add_at_once(writer, [[make_record(number)] for number in range(10)])
    writer.add([make_record(99)])
    assert len(commits.threads) == 1
    assert threading.get_ident() not in commits.threads


def test_greenlets_run_while_a_commit_is_synced(writer: GroupCommit, commits: Commits) -> None:
    """The commit below ends only when another greenlet has run: it must not be blocked by it."""
    others_ran = threading.Event()
    commits.before = lambda records: None if others_ran.wait(60) else pytest.fail("blocked")
    adding = gevent.spawn(writer.add, [make_record(1)])
    gevent.sleep(0.01)
    assert not adding.dead
    others_ran.set()
    assert _value_of(adding) == [Stored(replayed=False, server="server1")]


def test_error_reaches_all_of_its_group_and_nobody_after(
    writer: GroupCommit, commits: Commits, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    adding = gevent.spawn(_add_at_once, writer, [[make_record(number)] for number in range(5)])
    answers = _value_of(adding)
    assert len(answers) == 5
    assert all(isinstance(answer, StoreError) for answer in answers)
    other.execute("ROLLBACK")
    other.close()
    assert _add_at_once(writer, [[make_record(number)] for number in range(5)]) == (
        [[Stored(replayed=False, server="server1")]] * 5
    )


def test_error_leaves_no_stack_trace_in_the_log(
    writer: GroupCommit, commits: Commits, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(records: Sequence[Record]) -> None:
        raise StoreError("the store failed: on purpose")

    commits.before = fail
    with pytest.raises(StoreError, match="on purpose"):
        writer.add([make_record(1)])
    assert capfd.readouterr().err == ""


def test_group_after_a_failed_one_is_stored(writer: GroupCommit, commits: Commits) -> None:
    """The first group fails; what gathered meanwhile does not."""
    gathered = threading.Event()

    def fail_first(records: Sequence[Record]) -> None:
        if len(commits.sizes) == 1:
            gathered.wait(60)
            raise StoreError("the store failed: on purpose")

    commits.before = fail_first
    first = gevent.spawn(_add_at_once, writer, [[make_record(1)]])
    gevent.sleep(0.01)
    second = gevent.spawn(_add_at_once, writer, [[make_record(2)], [make_record(3)]])
    gevent.sleep(0.01)
    gathered.set()
    assert isinstance(_value_of(first)[0], StoreError)
    assert _value_of(second) == [[Stored(replayed=False, server="server1")]] * 2
    assert commits.sizes == [1, 2]
    assert writer.run(SqlStore.count) == 2


def test_unexpected_error_is_told_too_and_leaves_the_writer_working(
    writer: GroupCommit, commits: Commits
) -> None:
    def fail(records: Sequence[Record]) -> None:
        raise ZeroDivisionError

    commits.before = fail
    with pytest.raises(ZeroDivisionError):
        writer.add([make_record(1)])
    commits.before = lambda records: None
    assert writer.add([make_record(1)]) == [Stored(replayed=False, server="server1")]
