"""The game day: what it breaks comes back, what it shows is true. For a node with its own disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import broken
from tests.support.log_limits import lower_limits_of_units
from tests.support.node import COORDINATOR, REPOSITORY, SERVERS, Control, Node, Play, wait_for

_PLAYBOOK = "playbooks/game_day.yml"
_ENGINES = "lib/python3*/site-packages/sealrelay/store/engines.py"
_SHORT = "kill freeze blackhole_out coordinator_kill disk_full power_loss"
_LONG = os.environ.get("SEALRELAY_TIER") == "long"
"""``bin/test --long`` asks for it."""
_FLAWED = "/etc/systemd/system/sealrelay-server@.service.d/flawed.conf"
_FAULTS = REPOSITORY / "roles/failover_check/vars/main/faults.yml"
_LEFT = (
    "/var/tmp/sealrelay-fault",  # noqa: S108 - the role's own, mode 0700
    "/var/lib/sealrelay/.sealrelay-fault",
)
_LATE = ("acknowledged later than", "due and never sent")
"""Reasons that a busy machine can bring about, and that say nothing about what is stored."""


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return tmp_path / "reports"


@pytest.fixture(autouse=True)
def settled_again(node: Node) -> Iterator[None]:
    node.settle()
    yield
    node.settle()


@pytest.fixture
def faults() -> list[str]:
    if _LONG:
        return list(yaml.safe_load(_FAULTS.read_text())["_failover_check_known_faults"])
    return _SHORT.split()


def hold(control: Control, reports: Path, *faults: str, **variables: Any) -> Play:
    chosen = {"failover_check_faults": list(faults)} if faults else {}
    variables |= {"failover_check_report_dir": str(reports), **chosen}
    return control.play(_PLAYBOOK, variables=variables, timeout=1800)


def read_report(reports: Path) -> dict[str, dict[str, Any]]:
    (folder,) = reports.iterdir()
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    report = json.loads((folder / "report.json").read_text())
    return {fault["name"]: fault for fault in report["faults"]}


def assert_unharmed(fault: dict[str, Any]) -> None:
    """Nothing lost, doubled or failed. How late a message may be is for a quiet machine to say."""
    assert set(fault["wrong"].values()) == {0}, fault
    assert fault["failed"] == 0, fault
    others = [why for why in fault["reasons"] if not any(late in why for late in _LATE)]
    assert others == [], fault


def test_nothing_is_lost_doubled_or_refused_whatever_fails(
    node: Node, control: Control, reports: Path, lab: str, faults: list[str]
) -> None:
    boot = [str(REPOSITORY / "bin" / "lab"), "--name", lab, "boot", node.name]
    play = hold(control, reports, *faults, failover_check_boot_command=boot)
    found = read_report(reports)
    assert list(found) == faults, play.out
    for name, fault in found.items():
        assert (fault["outcome"] == "skipped") == (name == "store_restart"), fault
        if name != "store_restart":
            assert_unharmed(fault)
    assert found["kill"]["eject_ms"] is not None
    assert found["kill"]["readmit_ms"] is not None
    # It left nothing behind.
    assert node.try_run("nft", "list", "table", "inet", "sealrelay_fault").returncode != 0
    assert [path for path in _LEFT if node.try_run("test", "-e", path).returncode == 0] == []
    assert node.shell("ls /etc/sealrelay/*/*.before /etc/sealrelay/*/*/*.before || true") == ""
    assert_page_can_be_had_again(reports)


def assert_page_can_be_had_again(reports: Path) -> None:
    """The evidence is all that it is made of."""
    (folder,) = reports.iterdir()
    program = REPOSITORY / "roles/failover_check/files/game_day"
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    done = subprocess.run(
        [sys.executable, program, "page", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").read_text() == before


def test_evidence_is_whole_where_journald_drops_lines(
    node: Node, control: Control, reports: Path
) -> None:
    since = node.now()
    with lower_limits_of_units(node):
        play = hold(control, reports, "stop")
    found = read_report(reports)["stop"]
    assert_unharmed(found)
    assert found["eject_ms"] is not None, play.out
    assert found["readmit_ms"] is not None, play.out
    assert "Suppressed" in node.journal(COORDINATOR, since=since)


def test_store_that_does_not_sync_is_caught(node: Node, control: Control, reports: Path) -> None:
    """The power loss is real: what was acknowledged before it reached the disk is gone."""
    engines = node.shell(f"echo /opt/sealrelay/current/{_ENGINES}").strip()
    node.run("cp", "-p", engines, f"{engines}.good")
    try:
        node.run("sed", "-i", "s/PRAGMA synchronous = FULL/PRAGMA synchronous = OFF/", engines)
        node.run("systemctl", "restart", *SERVERS)
        play = hold(control, reports, "power_loss")
    finally:
        node.run("mv", f"{engines}.good", engines)
        node.run("systemctl", "restart", *SERVERS)
    assert play.code != 0
    assert read_report(reports)["power_loss"]["wrong"]["lost"] > 0, play.out


@pytest.mark.skipif(not _LONG, reason="bin/test --long asks for it")
@pytest.mark.parametrize(
    ("flaw", "fault", "damage"),
    [
        ("acknowledge-before-commit", "kill", "lost"),
        ("forget-ids", "freeze", "doubled"),
        ("hedge-without-id", "blackhole_out", "doubled"),
    ],
)
def test_servers_with_a_flaw_built_in_are_caught(
    node: Node, control: Control, reports: Path, flaw: str, fault: str, damage: str
) -> None:
    with run_flawed(node, flaw):
        play = hold(control, reports, fault)
    assert play.code != 0
    found = read_report(reports)[fault]
    assert found["outcome"] == "failed"
    assert found["wrong"][damage] > 0, play.out


@contextmanager
def run_flawed(node: Node, flaw: str) -> Iterator[None]:
    """Both servers have a flaw meanwhile; see ``tests.support.broken``."""
    release = node.run("readlink", "-f", "/opt/sealrelay/current").strip()
    program = f"{release}/broken.py"
    start = f"{release}/bin/python {program} {flaw}"
    config = "/etc/sealrelay/servers/%i/server.toml"
    try:
        node.write(program, Path(broken.__file__).read_text(), "0644")
        node.run("mkdir", "-p", str(Path(_FLAWED).parent))
        node.write(
            _FLAWED, f"[Service]\nExecStart=\nExecStart={start} server --config {config}\n", "0644"
        )
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", *SERVERS)
        yield
    finally:
        node.run("rm", "-rf", str(Path(_FLAWED).parent), program)
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", *SERVERS)


@pytest.mark.long
def test_fault_ends_by_itself_when_the_playbook_is_interrupted(
    node: Node, control: Control, reports: Path
) -> None:
    variables = {
        "failover_check_report_dir": str(reports),
        "failover_check_faults": ["blackhole"],
        "failover_check_fault_seconds": 25,
    }
    process = control.start(_PLAYBOOK, variables=variables)
    try:
        wait_for(lambda: has_table(node), "the server is cut off", seconds=120)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()
    assert has_table(node)
    wait_for(lambda: not has_table(node), "the server can be reached again")
    # What it left is cleared away by the next one.
    play = hold(control, reports / "next", "stop")
    assert_unharmed(read_report(reports / "next")["stop"])
    assert "PLAY RECAP" in play.out


def has_table(node: Node) -> bool:
    return node.try_run("nft", "list", "table", "inet", "sealrelay_fault").returncode == 0


def test_it_asks_first_and_says_what_it_would_do(control: Control, reports: Path) -> None:
    play = hold(control, reports, "stop", "revoked", failover_check_is_lab=False)
    assert play.code != 0
    assert "stop: A server is stopped (sealrelay-server@5001 on node1)" in play.text
    assert "Nothing was done." in play.text
    assert "say it with -e confirm=yes" in play.text
    assert not reports.exists()


def test_it_leaves_a_deployment_alone_that_is_not_healthy(
    node: Node, control: Control, reports: Path
) -> None:
    node.run("systemctl", "stop", SERVERS[1])
    play = hold(control, reports, "stop")
    assert play.code != 0
    assert "Nothing was stopped, since the deployment is not healthy" in play.text
    assert node.is_active(SERVERS[0])


def test_it_knows_its_faults(control: Control, reports: Path) -> None:
    play = hold(control, reports, "stop", "earthquake")
    assert play.code != 0
    assert "There is no fault earthquake; the faults are stop, kill, freeze" in play.text


def test_a_rehearsal_breaks_nothing(node: Node, control: Control, reports: Path) -> None:
    since = node.now()
    play = control.play(_PLAYBOOK, "--check", variables={"failover_check_report_dir": str(reports)})
    # What a day begins with, where there was none yet.
    would = {"failover_check : Install what a skewed clock needs, in the lab"}
    assert (play.code, set(play.changed_tasks) - would) == (0, set()), play.out
    assert not reports.exists()
    assert node.journal("sealrelay-fault", since=since) == ""
