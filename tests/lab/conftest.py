"""Tests of a deployed lab node.

    SEALRELAY_LAB=lab pytest tests/lab

They leave it as they found it, but for the messages that they send. ``stage_*.py`` are for a
disposable node: molecule runs them before it deploys, after the others, and when it removes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.lab.peers import read_keys
from tests.support.node import REPOSITORY, Control, Node

_JOURNAL_LINES = 60
_DISRUPTIVE = (
    "test_failover.py",
    "test_operations.py",
    "test_restart.py",
    "test_status.py",
    "test_watchdog.py",
    "stage_update.py",
)
_WHY_SKIPPED = "SEALRELAY_LAB names no lab; start one with bin/lab, deploy to it, and set it"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Some facts hold by accident once a service was restarted: look at it as it was deployed first.
    items.sort(key=lambda item: item.path.name in _DISRUPTIVE)
    if "SEALRELAY_LAB" in os.environ:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=_WHY_SKIPPED))


def pytest_sessionstart() -> None:
    if "MOLECULE_SCENARIO_NAME" in os.environ:
        threading.Thread(target=_end_with, args=(_ancestors(),), daemon=True).start()


def _end_with(ancestors: list[Path]) -> None:
    """End when molecule, or what started it, is killed.

    These tests would go on otherwise, on the node that the next run has made meanwhile.
    """
    started = [_start_time(process) for process in ancestors]
    while [_start_time(process) for process in ancestors] == started:
        time.sleep(0.5)
    os._exit(3)


def _ancestors() -> list[Path]:
    found = [Path("/proc/self").resolve()]
    while (parent := _stat(found[-1])[1]) not in ("0", "1"):
        found.append(Path("/proc", parent))
    return found


def _start_time(process: Path) -> str:
    """Tells a process from a later one of the same number; empty when there is none."""
    try:
        return _stat(process)[19]
    except OSError:
        return ""


def _stat(process: Path) -> list[str]:
    # pid (comm) state ppid …, see proc(5)
    return (process / "stat").read_text().rpartition(")")[2].split()


@pytest.fixture(scope="session")
def lab() -> str:
    return os.environ["SEALRELAY_LAB"]


@pytest.fixture(scope="session")
def node(lab: str) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="lab."))
    node1 = Node(lab, "node1", folder)
    done = node1.try_run("true")
    assert done.returncode == 0, f"node1 of lab '{lab}' does not answer: {done.stderr}"
    yield node1
    node1.disconnect()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def control(lab: str) -> Control:
    default = "inventory/lab" if lab == "lab" else "molecule/default/inventory"
    return Control(REPOSITORY / os.environ.get("SEALRELAY_INVENTORY", default))


@pytest.fixture(scope="session")
def secrets(node: Node, control: Control) -> list[str]:
    """What must not be seen anywhere else: the passphrase, and text of every key on the node."""
    keyrings = node.shell(
        "cat /etc/sealrelay/clients/*/payload.keys /var/lib/sealrelay/keyrings/*.keys"
    )
    pems = node.shell("cat /etc/sealrelay/*/key.pem /etc/sealrelay/*/*/key.pem")
    # The last line of a key is part of its public half, which certificates show too.
    lines = re.findall(r"-----BEGIN PRIVATE KEY-----\n(.+)\n(.+)\n.+\n-----END", pems)
    assert len(lines) == 6, "the leaf keys of two clients, two servers, coordinator and operator"
    return [control.passphrase, *{*read_keys(keyrings), *(line for two in lines for line in two)}]


@pytest.fixture
def scratch(node: Node) -> Iterator[str]:
    """A folder on the node for one test, only root's."""
    path = node.run("mktemp", "-d", "/root/test.XXXXXX").strip()
    yield path
    node.run("rm", "-rf", path)


@pytest.fixture
def settled(node: Node) -> Iterator[None]:
    """Every service runs and is used: before the test and, whatever it does, after it."""
    node.settle()
    yield
    node.settle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    target = getattr(item, "funcargs", {}).get("node")
    if report.failed and isinstance(target, Node):
        try:
            tail = target.journal("sealrelay-*", lines=_JOURNAL_LINES)
        except (AssertionError, OSError) as error:
            tail = f"cannot be read: {error}"
        report.sections.append((f"journal of {target.name}", tail))
    return report
