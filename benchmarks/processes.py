"""Programs that a measurement starts: each in a session of its own, ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

_PATIENCE = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """A program with its children, and the log they write."""

    def __init__(self, command: list[str], log: Path, folder: Path | None = None) -> None:
        self.log = log
        with log.open("ab") as file:
            # setpriv: it ends when the benchmark is killed
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=folder,
                start_new_session=True,
            )

    @property
    def processes(self) -> set[int]:
        """The process ids of the program and of its children."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(_stat(int(folder.name))[3]) == self._process.pid:
                    found.add(int(folder.name))
        return found

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send_signal(self, sig: signal.Signals) -> None:
        """To the program, not to its children."""
        self._process.send_signal(sig)

    def stop(self) -> None:
        """End it and its children."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        # children that outlived it, or all of it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def memory_mib(processes: Iterable[int], *, own: bool = False) -> float:
    """What processes have in memory, in MiB; pages that several share are shared out.

    ``own``: without what comes from files, which shifts with what else runs on the machine.
    """
    wanted = "Pss_Anon:" if own else "Pss:"
    total = 0
    for pid in processes:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name == wanted:
                total += int(rest.split()[0])
    return round(total / 1024, 1)


def cpu_seconds(processes: Iterable[int]) -> float:
    """Processor time that living processes have used so far, all threads together."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _stat(pid: int) -> list[str]:
    """The fields after the name: state ppid pgrp session … utime stime …, see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
