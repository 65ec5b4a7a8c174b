"""Who is let in to servers, and that a host's firewall is otherwise left alone.

In this lab servers listen on 127.0.0.1, so another program listens on their ports of the node's
address. What takes two hosts to see is in ``stage_hosts``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.listener import find_address, is_let_in, lets_in, listening
from tests.support.node import Control, Node, Play

_UNIT = "sealrelay-firewall.service"
_FILES = (
    "/etc/sealrelay/firewall.nft",
    f"/etc/systemd/system/{_UNIT}",
    "/etc/systemd/system/nftables.service.d",
)
_THEIRS = "table inet theirs { chain input { type filter hook input priority 10; policy accept; "
_THEIRS += "tcp dport 5009 counter drop; }; }"


_LIST_RULES = ("nft", "--stateless", "list", "table", "inet", "sealrelay")


def _list_rules(node: Node) -> str:
    return node.run(*_LIST_RULES)


def _play(control: Control, **variables: object) -> Play:
    return control.play("playbooks/firewall.yml", variables=variables)


def _deploy(control: Control, **variables: object) -> Play:
    play = _play(control, **variables)
    assert play.code == 0, play.out
    return play


@pytest.fixture
def restored(node: Node, control: Control) -> Iterator[None]:
    """The rules of the inventory again, after the test."""
    rules = _list_rules(node)
    yield
    if node.try_run(*_LIST_RULES).stdout != rules:
        _deploy(control)


@contextmanager
def _without_rules(node: Node) -> Iterator[None]:
    node.run("systemctl", "stop", _UNIT)
    try:
        yield
    finally:
        node.run("systemctl", "start", _UNIT)


def _find_own_address(address: str) -> str:
    """This machine's address on the lab's bridge."""
    with socket.create_connection((address, 22), timeout=10) as connection:
        name: str = connection.getsockname()[0]
        return name


@pytest.mark.parametrize("port", [5001, 5002])
def test_a_stranger_gets_no_connection_to_a_servers_port(node: Node, port: int) -> None:
    with listening(node, port) as address:
        assert not is_let_in(address, port)
        assert lets_in(node, address, port), "the host itself may"
        with _without_rules(node):
            assert is_let_in(address, port), "it was the firewall that refused"
        assert not is_let_in(address, port)


def test_every_other_port_is_as_open_as_before(node: Node) -> None:
    with listening(node, 5003) as address:
        for port in (22, 8000, 5003):
            assert is_let_in(address, port), port


def test_an_open_connection_outlives_the_loading_of_the_rules(node: Node) -> None:
    with listening(node, 5001) as address:
        with _without_rules(node):
            connection = socket.create_connection((address, 5001), timeout=10)
        with connection:
            assert not is_let_in(address, 5001)
            connection.sendall(b"still there")
            assert connection.recv(100) == b"still there"


def test_the_hosts_own_rules_do_not_take_ours_away(node: Node) -> None:
    """They begin with `flush ruleset` in the distribution's service."""
    rules = _list_rules(node)
    try:
        for action in ("start", "reload", "restart"):
            node.run("systemctl", action, "nftables.service")
            assert "table inet filter" in node.run("nft", "list", "tables")
            assert _list_rules(node) == rules, action
    finally:
        node.run("systemctl", "stop", "nftables.service")
        node.run("systemctl", "restart", _UNIT)
    assert _list_rules(node) == rules


def test_the_rules_are_loaded_at_boot_before_there_is_a_network(node: Node) -> None:
    assert node.run("systemctl", "is-enabled", _UNIT).strip() == "enabled"
    assert "network-pre.target" in node.show(_UNIT, "Before").split()
    assert "nftables.service" in node.show(_UNIT, "After").split()


@pytest.mark.usefixtures("restored")
def test_whom_the_inventory_names_is_let_in_and_coordinators_may_be_closed(
    node: Node, control: Control
) -> None:
    own = _find_own_address(find_address(node))
    # Networks that overlap, and a name that only the host's own /etc/hosts knows.
    servers = [own, f"{own}/30", "node2", "2001:db8::/32"]
    strange = ["192.0.2.0/24", "2001:db8::/32"]
    sources = {"firewall_server_sources": servers, "firewall_coordinator_sources": strange}
    assert _deploy(control, **sources).changed == 2
    assert _deploy(control, **sources).changed == 0
    with listening(node, 5001) as address:
        assert is_let_in(address, 5001)
        assert not is_let_in(address, 8000)
        assert is_let_in(address, 22)
        node.send("from a client on the host")
        _deploy(control, firewall_coordinator_sources=[*strange, own])
        assert not is_let_in(address, 5001)
        assert is_let_in(address, 8000)


def test_a_table_that_someone_changed_is_loaded_again(node: Node, control: Control) -> None:
    rules = _list_rules(node)
    for damage in (
        "delete table inet sealrelay",
        "insert rule inet sealrelay input tcp dport 5001 accept",
    ):
        node.run("nft", damage)
        assert _deploy(control).changed == 1
        assert _list_rules(node) == rules


def test_a_rehearsal_loads_nothing(node: Node, control: Control) -> None:
    rules = _list_rules(node)
    variables = {"firewall_server_sources": ["192.0.2.1"]}
    play = control.play("playbooks/firewall.yml", "--check", variables=variables)
    assert play.code == 0, play.out
    assert play.changed == 1, "the file that would be written"
    assert _list_rules(node) == rules


def test_what_has_no_address_is_told_before_anything_changes(node: Node, control: Control) -> None:
    rules = _list_rules(node)
    sources = ["no-such-host.invalid", "192.0.2.0/33", "localhost"]
    play = control.deploy(variables={"firewall_server_sources": sources})
    assert play.code != 0
    assert play.changed == 0, play.out
    assert "node1 finds no address for no-such-host.invalid: " in play.text
    assert "192.0.2.0/33: " in play.text
    assert "localhost: only this host's loopback address" in play.text
    assert "They shall reach its servers; correct them in the inventory" in play.text
    assert _list_rules(node) == rules


def test_rules_that_the_kernel_refuses_replace_nothing(node: Node, control: Control) -> None:
    rules, file = _list_rules(node), node.read(_FILES[0])
    play = _play(control, coordinator_port=70000, firewall_coordinator_sources=["192.0.2.1"])
    assert play.code != 0
    assert "would not be valid" in play.text
    assert _list_rules(node) == rules
    assert node.read(_FILES[0]) == file


@pytest.mark.usefixtures("restored")
def test_without_the_firewall_nothing_of_it_is_left_and_others_tables_stay(
    node: Node, control: Control
) -> None:
    def theirs() -> str:
        return node.run("nft", "list", "table", "inet", "theirs")

    node.run("nft", _THEIRS)
    try:
        before = theirs()
        _deploy(control, firewall_enabled=False)
        assert node.run("nft", "list", "tables").split("\n") == ["table inet theirs", ""]
        for path in _FILES:
            assert node.try_run("test", "-e", path).returncode == 1, path
        assert node.show(_UNIT, "LoadState") == "not-found"
        assert _deploy(control, firewall_enabled=False).changed == 0
        with listening(node, 5001) as address:
            assert is_let_in(address, 5001)
            _deploy(control)
            assert not is_let_in(address, 5001)
        assert theirs() == before
    finally:
        node.run("nft", "delete", "table", "inet", "theirs")
