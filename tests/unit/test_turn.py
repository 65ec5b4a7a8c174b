"""Writers of one SQLite file take turns, and one that is stopped in its turn is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest

from sealrelay.store import GroupCommit, SqlStore, open_store
from sealrelay.store.turn import Turn
from tests.unit.test_store import make_record, url_of

_PATIENCE = 60

# Begins to store a message, says so in the middle of its transaction, goes on at a line of input.
_WRITER = """
import sys
from sealrelay.store import open_store
from tests.unit.test_store import make_record

def pause(connection, *_):
    print("writing", flush=True)
    sys.stdin.readline()

store = open_store(sys.argv[1])
from sqlalchemy import event
event.listen(store._backend.engine, "commit", pause)
store.add([make_record(1)])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


@pytest.fixture
def writer(path: Path) -> Iterator[GroupCommit]:
    group = GroupCommit(open_store(url_of(path)))
    group.run(SqlStore.migrate)
    yield group
    group.run(SqlStore.close)


@contextmanager
def another_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of storing message 1."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, url_of(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until it is."""
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def test_writer_that_is_stopped_in_its_commit_is_ended_and_its_turn_is_the_others(
    writer: GroupCommit, path: Path
) -> None:
    with another_writer(path) as process:
        stop(process)
        with gevent.Timeout(_PATIENCE):
            assert [stored.replayed for stored in writer.add([make_record(2)])] == [False]
        assert process.wait(_PATIENCE) == -signal.SIGKILL
    assert writer.run(lambda store: store.get(make_record(1).message_id)) is None
    assert [stored.replayed for stored in writer.add([make_record(1)])] == [False]


def test_health_check_ends_a_stopped_writer_too(writer: GroupCommit, path: Path) -> None:
    with another_writer(path) as process:
        stop(process)
        with gevent.Timeout(_PATIENCE):
            writer.run(SqlStore.check)
        assert process.wait(_PATIENCE) == -signal.SIGKILL


def test_writer_that_only_takes_its_time_is_waited_for(writer: GroupCommit, path: Path) -> None:
    with another_writer(path) as process:
        waiting = gevent.spawn(writer.add, [make_record(2)])
        gevent.sleep(0.5)  # many looks at who holds everything up
        assert process.poll() is None
        assert not waiting.ready()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        waiting.get(timeout=_PATIENCE)
        assert process.wait(_PATIENCE) == 0
    assert writer.run(SqlStore.count) == 2


def test_stopped_process_is_left_alone_when_it_is_not_its_turn(path: Path) -> None:
    turn = Turn(path.with_suffix(".turn"))
    with subprocess.Popen(["sleep", "60"], text=True) as process:
        try:
            stop(process)
            with turn:
                assert turn.end_stopped_holder() is None
            assert turn.end_stopped_holder() is None
            assert process.poll() is None
        finally:
            process.kill()
    turn.close()
