"""Playbooks on a deployed node: nothing to do, rehearsals, and what preflight finds wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.node import UNITS, Control, Node, find_secrets


@pytest.fixture
def untouched(node: Node) -> Iterator[None]:
    """Fails the test when a service was restarted meanwhile."""

    def state() -> list[str]:
        return [node.show(unit, "ActiveEnterTimestampMonotonic") for unit in UNITS]

    before = state()
    yield
    assert state() == before


@pytest.mark.usefixtures("untouched")
def test_a_rehearsal_changes_nothing_and_shows_no_secret(
    control: Control, secrets: list[str]
) -> None:
    play = control.deploy("--check", "--diff", "-vvv")
    assert play.code == 0, play.out
    assert play.changed == 0, play.out
    assert not find_secrets(play.out, secrets)


@pytest.mark.usefixtures("untouched")
def test_preflight_names_who_holds_a_port(node: Node, control: Control) -> None:
    unit = "test-of-the-preflight"
    listen = "import socket, time; held = socket.create_server(('', 8010)); time.sleep(600)"
    node.run("systemd-run", "--quiet", "--collect", "--unit", unit, "python3", "-c", listen)
    try:
        pid = node.show(f"{unit}.service", "MainPID")
        play = control.deploy(variables={"coordinator_port": 8010})
    finally:
        node.run("systemctl", "stop", f"{unit}.service")
    assert play.code != 0
    assert f"Port 8010 of node1 is taken by process {pid} (python3)" in play.text
    assert "coordinator_port" in play.text
    assert play.changed == 0


@pytest.mark.long
@pytest.mark.usefixtures("untouched")
def test_preflight_asks_for_the_passphrase(control: Control) -> None:
    play = control.deploy(variables={"ca_passphrase": ""})
    assert play.code != 0
    assert "The passphrase of the CA is missing" in play.text
    assert play.changed == 0


@pytest.mark.usefixtures("untouched")
def test_preflight_refuses_a_wrong_passphrase(control: Control) -> None:
    key = (control.pki / "ca.key").read_bytes()
    play = control.deploy(variables={"ca_passphrase": "not the one it was made with"})
    assert play.code != 0
    assert "can't be opened with this passphrase" in play.text
    assert play.changed == 0
    assert (control.pki / "ca.key").read_bytes() == key


@pytest.mark.usefixtures("untouched")
def test_preflight_refuses_to_leave_the_store(control: Control) -> None:
    """The other store knows no message of this one, so some would be stored twice."""
    other = "sqlite:////var/lib/sealrelay/other.db"
    play = control.deploy(variables={"server_store": other})
    assert play.code != 0
    assert "store in sqlite:////var/lib/sealrelay/messages.db, but server_store is" in play.text
    assert play.changed == 0


def test_preflight_begins_no_empty_store_in_place_of_one_that_is_gone(
    node: Node, control: Control
) -> None:
    store = "/var/lib/sealrelay/messages.db"
    node.run("mv", store, f"{store}.moved")
    try:
        play = control.deploy()
    finally:
        node.run("mv", "-n", f"{store}.moved", store)
    assert play.code != 0
    assert f"{store} of node1 is gone, where the servers stored; put it back" in play.text
    assert play.changed == 0
    assert node.send("after it is back")


@pytest.mark.parametrize(
    "more", ["client_names=client1,client2,client3", "sealrelay_trust_domain=other.internal"]
)
def test_a_rehearsal_of_new_leaves_is_green(control: Control, more: str) -> None:
    """The settings that will be can't be judged by the leaves that are there."""
    play = control.deploy("--check", "-e", more)
    assert play.code == 0, play.out
    assert play.changed > 0
    again = control.deploy("--check")
    assert (again.code, again.changed) == (0, 0), again.out
