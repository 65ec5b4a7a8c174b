"""What is done to the first of the two servers, or to their store, while a load goes on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.processes import Program
from benchmarks.testbed import Measurement
from tests.support.deployment import free_port

_TABLE = "sealrelay_bench_"
_OPENING = 10.0
SLOWER = 0.5
"""Seconds that the fault ``slow`` adds to each answer."""
_BROWN_OUT = 0.02
"""Seconds that the fault ``brownout`` adds to each sync: some ten times what a commit takes."""


class FaultFailed(Exception):
    """A fault that could not be brought about, so nothing was measured."""


@contextmanager
def _stop(measurement: Measurement) -> Iterator[None]:
    """SIGTERM, as systemd stops a service; it stays away."""
    measurement.servers[0].terminate()
    yield


@contextmanager
def _kill(measurement: Measurement) -> Iterator[None]:
    """SIGKILL to all its processes at once; it stays away."""
    measurement.servers[0].stop(signal.SIGKILL)
    yield


@contextmanager
def _freeze(measurement: Measurement) -> Iterator[None]:
    """SIGSTOP to all its processes at once; it goes on afterwards."""
    group = os.getpgid(min(measurement.servers[0].processes))
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


@contextmanager
def _black_hole(measurement: Measurement) -> Iterator[None]:
    """Packets to it and from it vanish, of open connections and of new ones."""
    port = measurement.ports[0]
    table = f"{_TABLE}{os.getpid()}"
    _nft(
        f"""table inet {table} {{
            chain input {{
                type filter hook input priority -10; policy accept;
                iifname "lo" tcp dport {port} counter drop
                iifname "lo" tcp sport {port} counter drop
            }}
        }}"""
    )
    try:
        yield
        dropped = re.findall(r"packets (\d+)", _nft(f"list table inet {table}"))
        if not any(map(int, dropped)):
            raise FaultFailed("no packet was dropped")
    finally:
        _nft(f"delete table inet {table}")


@contextmanager
def _slow(measurement: Measurement) -> Iterator[None]:
    """Each of its answers comes 500 ms later; the delaying proxy is there all the time."""
    assert measurement.delay is not None
    measurement.delay.send_signal(signal.SIGUSR1)
    try:
        yield
    finally:
        measurement.delay.send_signal(signal.SIGUSR2)


@contextmanager
def _brown_out(measurement: Measurement) -> Iterator[None]:
    """Each sync to disk takes 20 ms longer, for both servers: their store is ten times as slow."""
    injection = f"inject=fsync,fdatasync:delay_exit={round(_BROWN_OUT * 1e6)}"
    command = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"]
    with contextlib.ExitStack() as tracers:
        for server in measurement.servers:
            for pid in server.workers:
                log = measurement.folder / f"strace-{pid}.log"
                program = Program([*command, injection, "-p", str(pid)], log)
                tracers.callback(program.stop)
                _wait_for_tracer(pid)
        yield


FAULTS: dict[str, Callable[[Measurement], AbstractContextManager[None]]] = {
    "stop": _stop,
    "kill": _kill,
    "freeze": _freeze,
    "blackhole": _black_hole,
    "slow": _slow,
    "brownout": _brown_out,
}


@contextmanager
def delayed_first_server(measurement: Measurement) -> Iterator[tuple[int, int]]:
    """Put the delaying proxy in front of the first server; yields the ports to reach both by."""
    first, second = measurement.ports
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.delay", str(port), str(first), str(SLOWER)]
    program = Program(command, measurement.folder / "delay.log")
    try:
        _wait_for_port(port)
        measurement.delay = program
        yield port, second
    finally:
        program.stop()


def why_impossible(fault: str) -> str | None:
    """Why a fault can't be brought about here; None when it can."""
    if fault == "brownout" and shutil.which("strace") is None:
        return "there is no strace"
    if fault != "blackhole":
        return None
    if os.geteuid() != 0:
        return "dropping packets needs root"
    with contextlib.suppress(FileNotFoundError):
        _nft("list tables")
        return None
    return "there is no nft"


def remove_leftovers() -> None:
    """Remove the packet filters of runs that were killed."""
    with contextlib.suppress(FileNotFoundError, FaultFailed):
        for pid in re.findall(rf"table inet {_TABLE}(\d+)", _nft("list tables")):
            if not Path(f"/proc/{pid}").exists():
                _nft(f"delete table inet {_TABLE}{pid}")


def _nft(commands: str) -> str:
    run = subprocess.run(
        ["nft", "-f", "-"], input=commands, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise FaultFailed(f"nft: {run.stderr.strip()}")
    return run.stdout


def _wait_for_tracer(pid: int) -> None:
    deadline = time.monotonic() + _OPENING
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if time.monotonic() > deadline:
            raise FaultFailed("strace could not attach")
        time.sleep(0.01)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + _OPENING
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        if time.monotonic() > deadline:
            raise FaultFailed("the delaying proxy did not start")
        time.sleep(0.02)
