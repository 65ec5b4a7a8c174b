"""Whether the names of an SQLite database still lead to the files that this process has open.

In WAL mode SQLite goes on with files that were renamed, replaced or unlinked, and commits to them:
see "Unlinking or renaming a database file while in use" in sqlite.org's "How To Corrupt An SQLite
Database File". Whoever opens the database next finds none of that.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from sealrelay.store.records import StoreMoved

_REMEDY = "put the former one back; for another, stop all servers first (docs/store.md)"

_AT_FDCWD = -100
_STATX_INO = 0x100
_STATX = struct.Struct("32x Q 96x II 112x")  # struct statx of statx(2): stx_ino, stx_dev_*

_libc = ctypes.CDLL(None, use_errno=True)

_FileId = tuple[int, int, int]
"""What no two files have at the same time: the inode, and its device."""


class OpenFiles:
    """The database, its write-ahead log and its index, as one process has them open."""

    def __init__(self, database: Path) -> None:
        self._database = os.fsencode(database)
        self._held: int | None = None
        self._paths: list[bytes] = []
        self._known: dict[bytes, _FileId] = {}

    def hold(self) -> None:
        """Call it before the database is opened: only the file of the first time will ever do.

        A later file may lack what was acknowledged since. Raises StoreMoved, or OSError.
        """
        if self._held is None:
            # Else the inode of an unlinked file could be given to the file that takes its place.
            # O_PATH: closing any other descriptor would drop SQLite's locks, see fcntl(2).
            self._held = os.open(self._database, os.O_PATH | os.O_CLOEXEC)
        self._known = {self._database: _identify(b"/proc/self/fd/%d" % self._held)}
        self._compare(self._database)
        # SQLite follows links in the database's name before it makes these of it.
        real = os.path.realpath(self._database)
        self._paths = [self._database, real + b"-wal", real + b"-shm"]

    def check(self) -> None:
        """Call it within a transaction, when all three are open, or after it.

        Takes some microseconds. Raises StoreMoved, or OSError.
        """
        for path in self._paths:
            self._compare(path)

    def close(self) -> None:
        """Forget the files; the next ones to be held may be others."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def _compare(self, path: bytes) -> None:
        try:
            there = _identify(path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreMoved(f"{os.fsdecode(path)} is gone: {_REMEDY}") from None
        if self._known.setdefault(path, there) != there:
            raise StoreMoved(f"{os.fsdecode(path)} was replaced: {_REMEDY}")


def _identify(path: bytes) -> _FileId:
    """Which file a path names, links followed. Raises OSError.

    stat(2) would ask for its times as well, and so have the next write to it note the time more
    precisely (Linux 6.13): with the write-ahead log's, a commit takes half as long again.
    """
    found = ctypes.create_string_buffer(_STATX.size)
    if _libc.statx(_AT_FDCWD, path, 0, _STATX_INO, found):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    inode, major, minor = _STATX.unpack(found)
    return inode, major, minor
