"""``sealrelay migrate`` as a playbook runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealrelay.store.schema import REVISION
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, run_sealrelay

CURRENT = f"The schema is current (revision {REVISION}).\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment that is never started; its settings are what matters here."""
    return Deployment(tmp_path_factory.mktemp("commands") / "deployment")


@pytest.fixture
def config(made: Deployment, tmp_path: Path) -> Path:
    """Settings of a server whose store is not there yet."""
    file = made.servers[0].config.with_name(f"{tmp_path.name}.toml")
    text = made.servers[0].config.read_text()
    file.write_text(text.replace(f"{made.folder}/messages.db", f"{tmp_path}/messages.db"))
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
        f"run `sealrelay migrate`\n"
    )
    assert list(tmp_path.iterdir()) == []
    run_main("migrate", "--config", str(config))
    current = run_main("migrate", "--config", str(config), "--check")
    assert (current.code, current.out) == (0, CURRENT)


def test_migrations_at_once_are_applied_once(config: Path) -> None:
    command = [sys.executable, "-m", "sealrelay", "migrate", "--config", str(config)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    printed = [process.communicate(timeout=2 * PATIENCE) for process in running]
    assert [process.returncode for process in running] == [0] * 4, printed
    assert sorted(out == CURRENT for out, _ in printed) == [False, True, True, True], printed


def test_store_that_cannot_be_reached_is_exit_code_3(config: Path, tmp_path: Path) -> None:
    (tmp_path / "messages.db").mkdir()
    for options in ([], ["--check"]):
        result = run_main("migrate", "--config", str(config), *options)
        assert (result.code, result.out) == (3, "")
        (line,) = result.err.splitlines()
        assert line.startswith(f"sealrelay: store of {config}: the store failed: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_migrating_as_root_leaves_files_that_the_service_can_write(
    config: Path, tmp_path: Path
) -> None:
    """The folder's owner is the service; nobody else may read what it stores."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp"):  # noqa: S108 - which everybody may enter
            break
        folder.chmod(0o755)
    os.chown(tmp_path, 12345, 12346)
    for _ in range(2):
        assert run_sealrelay("migrate", "--config", str(config)).returncode == 0
        found = {file.name: file.stat() for file in tmp_path.iterdir()}
        assert "messages.db" in found
        for stat in found.values():
            assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (12345, 12346, 0o640)
