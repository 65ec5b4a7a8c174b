"""What runs on a deployed node, as whom, and what it can't do."""

from __future__ import annotations

import re
import socket

import pytest

from tests.support.node import COORDINATOR, SERVERS, SOCKET, UNITS, Node

_PORTS = {5001: SERVERS[0], 5002: SERVERS[1], 8000: COORDINATOR}
_SECRETS_OF_SERVERS = ("/var/lib/sealrelay/messages.db", "/etc/sealrelay/servers/5001/key.pem")
_SECRETS_OF_CLIENTS = ("/etc/sealrelay/clients/client1/payload.keys",)
_SECRETS_OF_COORDINATORS = ("/etc/sealrelay/coordinator/key.pem",)


def _sees(node: Node, pid: int, path: str) -> bool:
    """Whether a file exists where a process looks for it."""
    return node.try_run("nsenter", "-t", str(pid), "-m", "test", "-e", path).returncode == 0


def _writes(node: Node, pid: int, folder: str) -> bool:
    """Whether its mounts let a process write there; root asks, so file modes play no part."""
    file = f"{folder}/.test-of-the-sandbox"
    script = f'touch "{file}" && rm "{file}"'
    return node.try_run("nsenter", "-t", str(pid), "-m", "sh", "-c", script).returncode == 0


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_active_and_starts_at_boot(node: Node, unit: str) -> None:
    assert node.show(unit, "ActiveState") == "active"
    assert node.run("systemctl", "is-enabled", unit).strip() == "enabled"


def test_nothing_of_ours_has_failed(node: Node) -> None:
    failed = node.run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert "sealrelay" not in failed


@pytest.mark.parametrize(("port", "unit"), _PORTS.items())
def test_port_is_held_by_our_process(node: Node, port: int, unit: str) -> None:
    listing = node.run("ss", "-Hltnp", f"sport = :{port}")
    holders = {int(pid) for pid in re.findall(r"pid=(\d+)", listing)}
    assert holders & set(node.pids(unit))
    # systemd holds the coordinator's port too, for the time of a restart
    assert holders - set(node.pids(unit)) == ({1} if unit == COORDINATOR else set())


def test_only_the_coordinator_is_reached_from_outside(node: Node) -> None:
    address = node.run("hostname", "-I").split()[0]
    with socket.create_connection((address, 8000), timeout=5):
        pass
    for port in (5001, 5002):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)


def test_the_coordinator_cannot_see_messages_or_keys_of_others(node: Node) -> None:
    pid = int(node.show(COORDINATOR, "MainPID"))
    assert _sees(node, pid, "/etc/sealrelay/coordinator/key.pem")
    for path in (*_SECRETS_OF_SERVERS, *_SECRETS_OF_CLIENTS):
        assert _sees(node, 1, path), path
        assert not _sees(node, pid, path), path


@pytest.mark.parametrize("unit", SERVERS)
def test_a_server_cannot_see_keys_of_clients_or_the_coordinator(node: Node, unit: str) -> None:
    pid = int(node.show(unit, "MainPID"))
    assert _sees(node, pid, "/var/lib/sealrelay/messages.db")
    for path in (*_SECRETS_OF_CLIENTS, *_SECRETS_OF_COORDINATORS):
        assert _sees(node, 1, path), path
        assert not _sees(node, pid, path), path


@pytest.mark.parametrize("unit", [*SERVERS, COORDINATOR])
def test_a_service_can_write_only_where_its_state_lies(node: Node, unit: str) -> None:
    pid = int(node.show(unit, "MainPID"))
    for folder in ("/etc/sealrelay", "/opt/sealrelay", "/usr/local/bin", "/var/log", "/root"):
        assert _writes(node, 1, folder), folder
        assert not _writes(node, pid, folder), folder
    assert unit == COORDINATOR or _writes(node, pid, "/var/lib/sealrelay")


@pytest.mark.parametrize("unit", [*SERVERS, COORDINATOR])
def test_a_service_comes_before_other_work_of_its_host(node: Node, unit: str) -> None:
    pids = node.pids(unit)
    assert len(pids) >= 2, "gunicorn's master and a worker"
    for pid in pids:
        assert node.run("ps", "-o", "ni=", "-p", str(pid)).strip() == "-10"
    assert node.show(unit, "CPUWeight") == "1000"


def test_the_socket_starts_the_coordinator(node: Node) -> None:
    assert node.show(SOCKET, "Triggers") == COORDINATOR
