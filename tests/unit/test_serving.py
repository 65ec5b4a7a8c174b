"""What gunicorn's processes do otherwise than gunicorn has it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.workers.workertmp import WorkerTmp

from sealrelay import worker
from sealrelay.errors import Unreachable
from sealrelay.identity import Role
from sealrelay.serving import _Master


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd listens at for a service to say that it is ready."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield sock


def tell_ready() -> None:
    own: Any = object.__new__(worker.RelayWorker)
    own._settings, own.ppid = SimpleNamespace(), os.getpid()
    own._tell_ready()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What signals a master gets that would tell systemd."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    signals: list[int] = []
    before = signal.signal(signal.SIGWINCH, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGWINCH, before)


def test_worker_that_answers_tells_the_master(
    told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "probe_service", lambda settings, wait: None)
    tell_ready()
    assert told == [signal.SIGWINCH]


def test_master_that_is_told_so_tells_systemd(systemd: socket.socket) -> None:
    master: Any = object.__new__(_Master)
    master.log = logging.getLogger()
    master.handle_winch()
    assert systemd.recv(100) == b"READY=1"


def give_sign_of_life(*ages: float) -> None:
    """As a master does whose workers gave theirs so many seconds ago."""
    master: Any = object.__new__(_Master)
    master.log = logging.getLogger()
    master.WORKERS = {}
    with contextlib.ExitStack() as files:
        for number, age in enumerate(ages):
            file = files.enter_context(contextlib.closing(WorkerTmp(Config())))
            os.utime(file.fileno(), (time.monotonic() - age,) * 2)
            master.WORKERS[number] = SimpleNamespace(tmp=file)
        master._give_sign_of_life()


def heard(systemd: socket.socket) -> bytes:
    try:
        return systemd.recv(100)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize(
    ("ages", "alive"),
    [((0,), True), ((31,), True), ((60,), False), ((60, 61), False), ((60, 0), True), ((), False)],
)
def test_master_says_that_it_lives_while_one_of_its_workers_does(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, ages: tuple[int, ...], *, alive: bool
) -> None:
    give_sign_of_life(0)
    assert heard(systemd) == b"", "there is no watchdog"
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    give_sign_of_life(*ages)
    assert heard(systemd) == (b"WATCHDOG=1" if alive else b"")


def test_worker_is_seen_alive_first_when_it_is_made(tmp_path: Path) -> None:
    """gunicorn would wait for ever for one that hangs before its loop."""
    settings = SimpleNamespace(
        role=Role.SERVER,
        max_connections=10,
    )
    application: Any = SimpleNamespace(settings=settings)
    made = worker.RelayWorker(1, os.getpid(), [], application, 15, Config(), logging.getLogger())
    with contextlib.closing(made.tmp) as file:
        assert 0 <= time.monotonic() - file.last_update() < 10


def test_worker_that_does_not_answer_tells_why_and_not_the_master(
    told: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def probe(settings: object, wait: float) -> None:
        raise Unreachable("server1 does not answer at 127.0.0.1:5001: timed out")

    monkeypatch.setattr(worker, "probe_service", probe)
    tell_ready()
    assert not told
    assert caplog.messages == ["Not started: server1 does not answer at 127.0.0.1:5001: timed out"]


def test_patching_reads_no_package_metadata() -> None:
    """In a process of its own, since it is patched for good."""
    program = """if True:
        import importlib.metadata, socket
        from sealrelay.worker import RelayWorker
        own = object.__new__(RelayWorker)
        own.sockets = []
        importlib.metadata.entry_points = None
        own.patch()
        print(socket.socket.__module__)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("gevent._socket3\n", "")


MASTER = """if True:
    import os, signal, sys, time
    from types import SimpleNamespace
    import sealrelay.serving as serving

    master = object.__new__(serving._Master)
    serving.Arbiter.__init__.__globals__["time"] = None  # nothing of gunicorn's may sleep
    master.cfg = SimpleNamespace(
        graceful_timeout=float(sys.argv[2]), reuse_port=False, child_exit=lambda *_: None
    )
    master.log = SimpleNamespace(info=print, error=print, warning=print)
    master.SIG_QUEUE = serving.queue.SimpleQueue()
    master._stats = {"workers_killed": 0}
    master.LISTENERS, master.systemd = [], True
    master.reexec_pid = master.master_pid = master.dirty_arbiter_pid = 0
    signal.signal(signal.SIGCHLD, master.signal_chld)
    signal.signal(signal.SIGINT, master.signal)
    worker = os.fork()
    if not worker:
        signal.signal(signal.SIGTERM, lambda *_: exec(sys.argv[1]))
        while True:
            signal.pause()
    master.WORKERS = {worker: SimpleNamespace(tmp=SimpleNamespace(close=lambda: None))}
    serving.Arbiter.stop = lambda master, graceful: print("left:", len(master.WORKERS), graceful)
    time.sleep(0.2)  # until the worker listens
    master.stop()
"""


def stop_master(worker_does: str, *, grace: float) -> str:
    """Have a master stop a worker that does this when told; what it leaves to gunicorn."""
    done = subprocess.run(
        [sys.executable, "-c", MASTER, worker_does, str(grace)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def test_master_is_woken_by_the_end_of_its_last_worker() -> None:
    began = time.monotonic()
    assert stop_master("os._exit(0)", grace=30) == "left: 0 False\n"
    assert time.monotonic() - began < 30, "it did not wait for its grace to end"


def test_master_kills_who_does_not_end_in_time() -> None:
    assert stop_master("None", grace=0.1) == "left: 1 False\n"


def test_master_that_is_interrupted_waits_no_longer() -> None:
    # the alarm ends the worker later, which nobody else would
    interrupt = f"os.kill(os.getppid(), {signal.SIGINT:d}); signal.alarm(2)"
    assert stop_master(interrupt, grace=30) == "left: 1 False\n"
