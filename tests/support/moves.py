"""What people do to an SQLite store's files while it is in use, and undo afterwards."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from sealrelay.store import open_store

SUFFIXES = ("", "-wal", "-shm")

Move = Callable[[Path], AbstractContextManager[str]]
"""Takes the database's path, in a folder of its own; tells what a refusal says of it."""


def _copy(source: Path, copy: Path) -> None:
    """By another process: to open and close it here would drop SQLite's locks, see fcntl(2)."""
    subprocess.run(["cp", "--archive", source, copy], check=True)


@contextlib.contextmanager
def _renamed(path: Path, *suffixes: str) -> Iterator[str]:
    names = [path.with_name(path.name + suffix) for suffix in suffixes]
    for name in names:
        name.rename(f"{name}.away")
    try:
        yield f"{names[0].name} is gone"
    finally:
        for name in names:
            Path(f"{name}.away").rename(name)


@contextlib.contextmanager
def _renamed_folder(path: Path) -> Iterator[str]:
    folder = path.parent.resolve()
    away = folder.with_name("away")
    folder.rename(away)
    try:
        yield "messages.db is gone"
    finally:
        away.rename(folder)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """By a new store, as `mv` puts it there; the former one has another name meanwhile."""
    new = path.with_name("new.db")
    store = open_store(f"sqlite:///{new}")
    store.migrate()
    store.close()
    kept = path.with_name("kept.db")
    kept.hardlink_to(path)
    new.replace(path)
    try:
        yield "messages.db was replaced"
    finally:
        kept.replace(path)


@contextlib.contextmanager
def _replaced_folder(path: Path) -> Iterator[str]:
    """By a copy of all that is in it, as of a backup."""
    folder = path.parent.resolve()
    away = folder.with_name("away")
    _copy(folder, folder.with_name("copy"))
    folder.rename(away)
    folder.with_name("copy").rename(folder)
    try:
        yield "messages.db was replaced"
    finally:
        shutil.rmtree(folder)
        away.rename(folder)


@contextlib.contextmanager
def _replaced_log(path: Path) -> Iterator[str]:
    log = path.with_name(f"{path.name}-wal")
    kept = log.with_name("kept")
    log.rename(kept)
    _copy(kept, log)
    try:
        yield "messages.db-wal was replaced"
    finally:
        kept.replace(log)


def _renamed_all(path: Path) -> AbstractContextManager[str]:
    return _renamed(path, *SUFFIXES)


def _renamed_database(path: Path) -> AbstractContextManager[str]:
    return _renamed(path, "")


def _renamed_log(path: Path) -> AbstractContextManager[str]:
    return _renamed(path, "-wal")


def _renamed_index(path: Path) -> AbstractContextManager[str]:
    return _renamed(path, "-shm")


MOVES = (
    _renamed_all,
    _renamed_database,
    _renamed_log,
    _renamed_index,
    _renamed_folder,
    _replaced,
    _replaced_folder,
    _replaced_log,
)
