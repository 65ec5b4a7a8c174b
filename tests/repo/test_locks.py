"""Every Python package comes at one exact version, checked by hash, from whatever index pip has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repo.conftest import REPOSITORY, tracked_files

LOCKS = tracked_files("app/requirements.txt", "requirements/*.txt")


def requirements(lock: Path) -> list[str]:
    """The logical lines of a requirements file, continuations joined."""
    text = lock.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_there_are_locks() -> None:
    assert REPOSITORY / "app" / "requirements.txt" in LOCKS
    assert len(LOCKS) >= 10


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_pins_every_package_with_hashes(lock: Path) -> None:
    lines = requirements(lock)
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9._-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line[:80]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_names_no_index(lock: Path) -> None:
    assert not re.search(r"index-url|find-links|trusted-host|://", lock.read_text())


def test_app_lock_has_no_markers() -> None:
    """pip reads markers for the Python that runs it, but the wheelhouse is for the hosts'."""
    lock = REPOSITORY / "app" / "requirements.txt"
    assert not [line for line in requirements(lock) if ";" in line.split("--hash")[0]]


def test_locks_agree_on_what_the_app_uses() -> None:
    def pins(lock: Path) -> dict[str, str]:
        found = (re.match(r"([a-z0-9._-]+)==(\S+)", line) for line in requirements(lock))
        return {match[1]: match[2] for match in found if match}

    app = pins(REPOSITORY / "app" / "requirements.txt")
    for lock in tracked_files("requirements/test-*.txt", "requirements/bench-*.txt"):
        other = pins(lock)
        assert {name: other[name] for name in app if name in other} == {
            name: version for name, version in app.items() if name in other
        }, lock.name
