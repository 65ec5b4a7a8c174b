"""The servers of one host take turns to write to their SQLite file; a stopped one loses its own.

SQLite lets one process write at a time, and makes the others try again after a sleep. Two servers
that are always busy starve each other that way: one finds the lock free by chance, the other comes
back too late. So each waits here first, in a file lock for which the kernel wakes those who wait.
SQLite's own lock stays what keeps writers apart; this one only orders them.

A process that is stopped (SIGSTOP) in the middle of a commit would keep everybody
waiting until it goes on. Its commit has not been acknowledged to anybody, so the others end the
process: the kernel takes its locks away, SQLite drops what it had not committed, and its messages
are stored by another server. Clusters call that fencing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from pathlib import Path
from types import TracebackType

_FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length, pid
_STOPPED = "T"  # by a signal, see proc_pid_stat(5); a profiler's stops, "t", are short


class Turn:
    """A turn to write, for one thread of this process; a context manager, which waits for it.

    ``path``: a file beside the database, which everyone who writes to it uses. It stays empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._suspect: int | None = None

    def __enter__(self) -> None:
        """Wait until it is this process's turn, however long. Raises OSError."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def end_stopped_holder(self) -> int | None:
        """End the process whose turn it is if it is stopped, and was when this was last called.

        Returns its process id when it did. For another thread than the one that waits. Raises
        PermissionError when the process is not of this user, or OSError.
        """
        holder = self._holder()
        if holder is not None and not _is_stopped(holder):
            holder = None
        known, self._suspect = self._suspect, holder
        if holder is None or holder != known:
            return None
        try:
            process = os.pidfd_open(holder)
        except ProcessLookupError:
            return None
        try:
            # Whoever has the number now is the one that this descriptor stands for.
            if self._holder() != holder or not _is_stopped(holder):
                return None
            signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return None
        finally:
            os.close(process)
        return holder

    def close(self) -> None:
        """Let go of the file; the next turn opens it again."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _holder(self) -> int | None:
        """The other process whose turn it is; None when it is nobody's, or this one's."""
        file = self._file
        if file is None:
            return None
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK or pid <= 0 else pid


def _is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == _STOPPED
