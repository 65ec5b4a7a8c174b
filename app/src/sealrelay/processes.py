"""What the processes of one service share: a private folder, new at every start.

prometheus_client keeps each process's figures in a file there, and whichever process is asked adds
up all of them. It looks for the folder's name in the environment when it is imported, so the folder
is made before that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def share_folder() -> Iterator[None]:
    """Have a folder for this process and those forked from it; it goes away in the end.

    It is made in the unit's RuntimeDirectory (systemd.exec), which is memory and which systemd
    empties whatever happens, or else where temporary files go. Raises OSError.
    """
    folder = tempfile.mkdtemp(prefix="sealrelay-", dir=os.environ.get("RUNTIME_DIRECTORY"))
    owner = os.getpid()
    os.environ[_VARIABLE] = folder
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if os.getpid() == owner:  # a worker that ends comes by here, too
            shutil.rmtree(folder, ignore_errors=True)


def shared_folder() -> Path | None:
    """The folder, or None where this process is no part of a service."""
    folder = os.environ.get(_VARIABLE)
    return None if folder is None else Path(folder)


def forget_process(pid: int) -> None:
    """A worker has ended. What it had open or waiting counts no more, what it counted does."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
    folder = shared_folder()
    if folder is not None:
        _report_of(folder, pid).unlink(missing_ok=True)


def share_report(report: bytes) -> None:
    """Let the other processes read what this one says of itself now."""
    folder = shared_folder()
    if folder is None:
        return
    new = folder / f"new_{os.getpid()}"
    new.write_bytes(report)
    new.replace(_report_of(folder, os.getpid()))  # so that no reader sees a part of it


def read_reports() -> list[bytes]:
    """What each running process says of itself."""
    folder = shared_folder()
    reports = []
    for file in sorted(folder.glob("report_*")) if folder is not None else []:
        with suppress(FileNotFoundError):  # its process has just ended
            reports.append(file.read_bytes())
    return reports


def _report_of(folder: Path, pid: int) -> Path:
    return folder / f"report_{pid}"
