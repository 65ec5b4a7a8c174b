"""``sealrelay migrate`` and ``sealrelay prune``, as a playbook and a timer run them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from sealrelay.config import ServerSettings, load_settings
from sealrelay.store import SqlStore, open_store
from sealrelay.store.schema import REVISION
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, run_sealrelay
from tests.unit.test_store import make_record

CURRENT = f"The schema is current (revision {REVISION}).\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment that is never started; its settings are what matters here."""
    return Deployment(tmp_path_factory.mktemp("commands") / "deployment")


@pytest.fixture
def config(made: Deployment, tmp_path: Path) -> Path:
    """Settings of a server whose store is not there yet."""
    return configure(made, tmp_path)


def configure(made: Deployment, folder: Path) -> Path:
    file = made.servers[0].config.with_name(f"{folder.name}.toml")
    text = made.servers[0].config.read_text()
    file.write_text(text.replace(f"{made.folder}/messages.db", f"{folder}/messages.db"))
    return file


def test_migrate_tells_what_it_applied_and_then_that_nothing_is_due(config: Path) -> None:
    first = run_main("migrate", "--config", str(config))
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[0] == "Applied 0001."
    again = run_main("migrate", "--config", str(config))
    assert (again.code, again.out, again.err) == (0, CURRENT, "")


def test_migrate_check_changes_nothing(config: Path, tmp_path: Path) -> None:
    due = run_main("migrate", "--config", str(config), "--check")
    assert (due.code, due.out) == (9, "")
    assert due.err == (
        f"sealrelay: {config}: the store's schema is missing, this release needs {REVISION}; "
        f"run `sealrelay migrate`, or put {tmp_path}/messages.db back if it was moved\n"
    )
    assert list(tmp_path.iterdir()) == []
    run_main("migrate", "--config", str(config))
    current = run_main("migrate", "--config", str(config), "--check")
    assert (current.code, current.out) == (0, CURRENT)


def test_migrations_at_once_are_applied_once(config: Path) -> None:
    command = [sys.executable, "-m", "sealrelay", "migrate", "--config", str(config)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=2 * PATIENCE) for process in running]
    assert [process.returncode for process in running] == [0] * 3, printed
    assert sorted(out == CURRENT for out, _ in printed) == [False, True, True], printed


def test_store_that_cannot_be_reached_is_exit_code_3(config: Path, tmp_path: Path) -> None:
    (tmp_path / "messages.db").mkdir()
    for options in ([], ["--check"]):
        result = run_main("migrate", "--config", str(config), *options)
        assert (result.code, result.out) == (3, "")
        (line,) = result.err.splitlines()
        assert line.startswith(f"sealrelay: store of {config}: the store failed: ")


RETENTION = 7 * 24 * 3600
"""Seconds; the default."""


def fill(config: Path, ages: Iterable[float]) -> None:
    """Store messages that were received so many seconds ago."""
    now = time.time()
    records = [
        replace(make_record(number), received_at=int((now - age) * 1000))
        for number, age in enumerate(ages)
    ]
    with opened(config) as store:
        store.migrate()
        store.add(records)


@contextlib.contextmanager
def opened(config: Path) -> Iterator[SqlStore]:
    store = open_store(load_settings(config, ServerSettings).store)
    yield store
    store.close()


def numbers_in(config: Path) -> list[int]:
    """Which messages of ``fill`` are there."""
    with opened(config) as store:
        return sorted(int.from_bytes(record.message_id, "big") for record in store.newest())


def test_prune_removes_what_is_older_than_the_retention_and_nothing_else(config: Path) -> None:
    hour = 3600
    fill(config, [RETENTION + hour, RETENTION - hour, 0, 3 * RETENTION, -hour])
    dry = run_main("prune", "--config", str(config), "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert dry.out.startswith("2 messages received before 2")
    assert numbers_in(config) == [0, 1, 2, 3, 4]
    real = run_main("prune", "--config", str(config))
    assert (real.code, real.err) == (0, "")
    assert real.out.startswith("Removed 2 messages received before 2")
    assert numbers_in(config) == [1, 2, 4]
    again = run_main("prune", "--config", str(config))
    assert again.out.startswith("Removed 0 messages received before 2")


@pytest.mark.parametrize("batch", ["1", "7", "500"])
def test_prune_takes_as_many_transactions_as_it_needs(config: Path, batch: str) -> None:
    fill(config, [RETENTION + 60] * 100 + [0] * 5)
    result = run_main("prune", "--config", str(config), "--batch", batch)
    assert result.out.startswith("Removed 100 messages ")
    assert len(numbers_in(config)) == 5


def test_prune_follows_the_retention_that_is_set(config: Path) -> None:
    fill(config, [50, 200])
    text = config.read_text()
    config.write_text(text.replace("[tls]", "token_ttl = 30\nretention = 100\n[tls]"))
    assert run_main("prune", "--config", str(config)).out.startswith("Removed 1 messages ")
    assert numbers_in(config) == [0]


def test_prune_refuses_a_retention_that_would_let_a_token_come_back(config: Path) -> None:
    fill(config, [RETENTION + 60])
    text = config.read_text()
    config.write_text(text.replace("[tls]", "token_ttl = 100\nretention = 160\n[tls]"))
    result = run_main("prune", "--config", str(config))
    assert (result.code, result.out) == (8, "")
    assert "retention: 160 s is not longer than token_ttl" in result.err
    config.write_text(text)
    assert numbers_in(config) == [0]


def test_prune_waits_for_a_store_that_is_busy(config: Path, tmp_path: Path) -> None:
    fill(config, [RETENTION + 60] * 10)
    other = sqlite3.connect(tmp_path / "messages.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(2.5, other.execute, ["ROLLBACK"])  # later than SQLite itself waits
    release.start()
    result = run_main("prune", "--config", str(config))
    release.join()
    other.close()
    assert result.out.startswith("Removed 10 messages "), result.err


def test_prune_of_a_store_without_schema_says_what_to_do(config: Path, tmp_path: Path) -> None:
    for options in ([], ["--dry-run"]):
        result = run_main("prune", "--config", str(config), *options)
        assert (result.code, result.out) == (9, "")
        assert "run `sealrelay migrate`" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_migrating_and_pruning_as_root_leaves_files_that_the_service_can_write(
    made: Deployment,
) -> None:
    """The folder's owner is the service; nobody else may read what it stores."""
    # Not below pytest's own folder, which each pytest that starts closes to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, 12345, 12346)
        config = configure(made, folder)
        for command in ("migrate", "prune"):
            result = run_sealrelay(command, "--config", str(config))
            assert result.returncode == 0, result.stderr
            found = {file.name: file.stat() for file in folder.iterdir()}
            assert "messages.db" in found
            for stat in found.values():
                assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (12345, 12346, 0o640)
