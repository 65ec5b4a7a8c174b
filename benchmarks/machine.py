"""What a result was measured on: enough to compare, nothing that names the machine."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.peers import Peer

_REPOSITORY = Path(__file__).parents[1]


def describe_machine(peers: Sequence[Peer], folder: Path) -> dict[str, object]:
    """Facts for the results; ``folder`` is where the store lies."""
    return {
        "measured_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "processor": _first(r"model name\s*: (.+)", Path("/proc/cpuinfo")),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": _first(r'PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release")),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
        "store_filesystem": _filesystem(folder),
        "load_average_before": round(os.getloadavg()[0], 2),
        "peers": {peer.name: peer.version() for peer in peers},
    }


def is_in_memory(folder: Path) -> bool:
    """Whether a folder is on a file system that no commit to is worth anything."""
    return _filesystem(folder) in ("tmpfs", "ramfs")


def _filesystem(folder: Path) -> str:
    told = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def _commit() -> str:
    """The commit, with ``+`` when files differ from it; empty without git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        # Results are files of the repository themselves.
        return commit + "+" * bool(_git("status", "--porcelain", "--", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def _first(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text())
    return found[1].strip() if found else ""
