"""Servers with a flaw built in are found out: what proves that nothing is lost would see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.repo.conftest import REPOSITORY
from tests.support.command import run_main
from tests.support.deployment import Deployment, Service, wait_until

pytestmark = pytest.mark.long

_FAULTS = 12
"""Faults that are tried until the flaw shows; the first one nearly always does it."""


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "deployment")
    yield made
    made.stop()


def deploy_flawed(deployment: Deployment, flaw: str) -> None:
    for server in deployment.servers:
        start_flawed(server, flaw)
    deployment.coordinator.start()


def start_flawed(service: Service, flaw: str) -> None:
    _, _, _, *rest = service.command
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(service.config.parent)}
    service.spawn(
        [sys.executable, "-m", "tests.support.broken", flaw, *rest],
        cwd=REPOSITORY,
        env=environment,
    )
    service.wait()


@contextmanager
def load(deployment: Deployment, history: Path) -> Iterator[None]:
    """Messages are sent while this lasts; afterwards the history is complete."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sealrelay", "load", str(history), "--seconds=120", "-q"),
            *(f"--config={deployment.client_config(name)}" for name in ("client1", "client2")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        process.terminate()
        process.wait(60)
    finally:
        process.kill()


def wait_for_sent(history: Path, more: int) -> None:
    def count() -> int:
        return history.read_bytes().count(b'"event":"sent"') if history.exists() else 0

    wanted = count() + more
    wait_until(lambda: count() >= wanted, f"{more} more messages are sent")


def test_build_that_acknowledges_before_it_commits_loses_messages(
    deployment: Deployment, tmp_path: Path
) -> None:
    deploy_flawed(deployment, "acknowledge-before-commit")
    for number in range(_FAULTS):
        history = tmp_path / f"history{number}"
        server = deployment.servers[number % 2]
        with load(deployment, history):
            wait_for_sent(history, 50)
            server.stop(signal.SIGKILL)
            wait_for_sent(history, 50)
        _wait_for_last_commit(deployment)
        shown = run_main("verify", str(history), "--config", str(server.config))
        if shown.code != 0:
            break
        start_flawed(server, "acknowledge-before-commit")
    assert shown.code == 11
    assert "lost: number " in shown.out
    assert "stored twice: " not in shown.out


def test_build_that_forgets_ids_stores_what_is_hedged_twice(
    deployment: Deployment, tmp_path: Path
) -> None:
    deploy_flawed(deployment, "forget-ids")
    history = tmp_path / "history"
    with load(deployment, history):
        for number in range(_FAULTS):
            wait_for_sent(history, 50)
            # Frozen while it keeps the store's turn, it is ended by the other, and doubles nothing.
            server = deployment.servers[number % 2]
            server.pause()
            wait_for_sent(history, 50)
            server.resume()
            if _has_doubled(deployment):
                break
    _wait_for_last_commit(deployment)
    shown = run_main("verify", str(history), "--config", str(deployment.servers[0].config))
    assert shown.code == 11
    assert "stored twice: number " in shown.out
    assert "lost: " not in shown.out


def _has_doubled(deployment: Deployment) -> bool:
    with deployment.store() as store:
        tokens = [record.token for record in store.newest()]
    return len(tokens) > len(set(tokens))


def _wait_for_last_commit(deployment: Deployment) -> None:
    """Until nothing has been added for a second, three times as long as a flaw holds back."""
    before = -1
    while before != (before := deployment.stored()):
        time.sleep(1.0)
