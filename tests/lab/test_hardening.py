"""What a service that was taken over could do to its host: next to nothing."""

from __future__ import annotations

import re

import pytest

from tests.support.node import COORDINATOR, SERVERS, Node

_USERS = {
    **dict.fromkeys(SERVERS, "sealrelay-server"),
    COORDINATOR: "sealrelay-coordinator",
}
_FIREWALL = "sealrelay-firewall.service"
_SERVICES = (*SERVERS, COORDINATOR, "sealrelay-prune.service", _FIREWALL)
_WORST = 1.2
"""The most that `systemd-analyze security` may find exposed, of 10."""


def _status(node: Node, pid: int) -> dict[str, str]:
    lines = node.read(f"/proc/{pid}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _list_services(node: Node) -> set[str]:
    """Every service of ours, the servers' template by its instances."""
    listing = ["--no-legend", "--no-pager", "--plain", "sealrelay-*.service"]
    files = node.run("systemctl", "list-unit-files", *listing)
    loaded = node.run("systemctl", "list-units", "--all", *listing)
    names = {line.split()[0] for line in (*files.splitlines(), *loaded.splitlines())}
    return {name for name in names if not name.endswith("@.service")}


def test_these_are_all_services_of_ours(node: Node) -> None:
    assert _list_services(node) == set(_SERVICES)


@pytest.mark.parametrize("unit", _SERVICES)
def test_little_is_exposed_by_systemds_own_measure(node: Node, unit: str) -> None:
    listing = node.run("systemd-analyze", "security", "--no-pager", unit)
    exposure = re.search(rf"Overall exposure level for {re.escape(unit)}: ([0-9.]+)", listing)
    assert exposure is not None, listing
    assert float(exposure[1]) <= _WORST, listing


@pytest.mark.parametrize("unit", _SERVICES)
def test_no_service_is_started_as_root(node: Node, unit: str) -> None:
    if unit == _FIREWALL:
        assert node.show(unit, "DynamicUser") == "yes"
    else:
        user = node.show(unit, "User")
        assert int(node.run("id", "-u", user)) > 0
    assert node.show(unit, "NoNewPrivileges") == "yes"


@pytest.mark.parametrize(("unit", "user"), _USERS.items())
def test_every_process_of_a_service_runs_as_its_user_without_privileges(
    node: Node, unit: str, user: str
) -> None:
    uid = node.run("id", "-u", user).strip()
    pids = node.pids(unit)
    assert len(pids) >= 2, "gunicorn's master and a worker"
    for pid in pids:
        status = _status(node, pid)
        assert set(status["Uid"].split()) == {uid}
        assert uid != "0"
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2", "a filter"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name


def test_what_changes_the_firewall_leaves_no_process(node: Node) -> None:
    assert node.is_active(_FIREWALL)
    assert node.pids(_FIREWALL) == []


def test_pruning_an_sqlite_file_needs_no_network(node: Node) -> None:
    assert node.show("sealrelay-prune.service", "PrivateNetwork") == "yes"
    node.run("systemctl", "start", "sealrelay-prune.service")
    assert node.show("sealrelay-prune.service", "Result") == "success"
