"""Servers on two hosts that share one PostgreSQL. For a lab of two nodes, made by molecule.

node1 has the coordinator, the clients, the database and two servers, node2 two more servers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.stage_game_day import assert_unharmed, hold, read_report
from tests.support.listener import find_address, is_let_in, lets_in
from tests.support.node import (
    SERVERS,
    Control,
    Node,
    Sender,
    find_secrets,
    lab_command,
    read_receipts,
    wait_for,
)
from tests.support.secret_paths import check_node

_EVERY_SERVER = {"node1-5001", "node1-5002", "node2-5001", "node2-5002"}
_SETTINGS = "/etc/sealrelay/servers/5001/server.toml"
_PASSFILE = "/var/lib/sealrelay/store.pgpass"
# Connects as a server would, to what its settings say, changed as the arguments say.
_CONNECT = """
import re, sys, psycopg
url = re.search('^store = "(.+)"', open(sys.argv[1]).read(), re.M)[1]
for old, new in zip(sys.argv[2::2], sys.argv[3::2]):
    assert old in url, url
    url = url.replace(old, new)
try:
    print(psycopg.connect(url, connect_timeout=10).info.host)
except psycopg.OperationalError as error:
    print("refused:", " ".join(str(error).split()))
"""


@pytest.fixture(scope="module")
def other(lab: str) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="lab."))
    node2 = Node(lab, "node2", folder)
    yield node2
    node2.disconnect()
    shutil.rmtree(folder)


@pytest.fixture
def settled(node: Node, other: Node) -> Iterator[None]:
    """Every server of both hosts runs and is used: before the test and after it."""
    _settle(node, other)
    yield
    _settle(node, other)


def _settle(node: Node, other: Node) -> None:
    for each in (node, other):
        each.run("systemctl", "start", *SERVERS)
    wait_for(
        lambda: (
            {receipt["served_by"] for receipt in node.send("--count", "16", "settle")}
            == _EVERY_SERVER
        ),
        "every server of both hosts is in use",
        seconds=60,
    )


def _assert_stored_once(node: Node, receipts: list[dict[str, str]]) -> None:
    listing = node.run("sealrelay", "messages", "list", "--json", "--limit", "20000")
    stored = [message["message_id"] for message in read_receipts(listing)]
    acknowledged = {receipt["message_id"] for receipt in receipts}
    assert len(acknowledged) == len(receipts)
    assert acknowledged <= set(stored), "none is lost"
    assert len(set(stored)) == len(stored), "none is doubled"


@pytest.mark.usefixtures("settled")
def test_a_message_stored_by_any_host_is_seen_from_each(node: Node, other: Node) -> None:
    receipts = node.send("--count", "40", "two hosts")
    assert len({receipt["served_by"].partition("-")[0] for receipt in receipts}) == 2
    for receipt in receipts[-8:]:
        for each in (node, other):
            shown = each.run("sealrelay", "messages", "show", "--json", receipt["message_id"])
            assert json.loads(shown)["server"] == receipt["served_by"]
    counts = {each.run("sealrelay", "messages", "count") for each in (node, other)}
    assert len(counts) == 1


def _connect(node: Node, *changes: str) -> str:
    python = "/opt/sealrelay/current/bin/python"
    return node.run(python, "-c", _CONNECT, _SETTINGS, *changes).strip()


def test_the_database_lets_servers_in_with_password_and_tls_only(node: Node, other: Node) -> None:
    for each in (node, other):
        assert _connect(each) == node.run("hostname", "-I").split()[0]
    assert "no password" in _connect(other, _PASSFILE, "/dev/null")
    assert "no encryption" in _connect(other, "verify-full", "disable")
    assert "no pg_hba.conf entry" in _connect(other, "/sealrelay?", "/postgres?")


def test_a_server_lets_no_other_database_pass_for_its_own(other: Node) -> None:
    ca = "/etc/sealrelay/servers/5001/ca.pem"
    assert "certificate verify failed" in _connect(other, ca, "/etc/ssl/certs/ca-certificates.crt")
    other.shell("cp /etc/hosts /etc/hosts.kept; sed 's/node1$/not-in-the-leaf/' -i /etc/hosts")
    try:
        address = other.run("getent", "ahostsv4", "not-in-the-leaf").split()[0]
        said = _connect(other, f"@{address}/", "@not-in-the-leaf/")
    finally:
        other.run("mv", "/etc/hosts.kept", "/etc/hosts")
    assert "does not match host name" in said


def test_only_the_servers_can_read_the_stores_password(
    node: Node, other: Node, control: Control
) -> None:
    password = (control.pki / "store_password").read_text().strip()
    for each in (node, other):
        owner = each.run("stat", "-c", "%a %U %G", _PASSFILE).strip()
        assert owner == "600 sealrelay-server sealrelay-server"
        assert password in each.read(_PASSFILE)
        found = each.try_run(
            *("grep", "-rlaF", "-f", "-", "/etc", "/opt/sealrelay/good", "/var/log"), stdin=password
        )
        assert found.stdout == ""
        assert password not in each.journal()


def test_every_secret_is_as_the_table_says(node: Node, other: Node) -> None:
    everything = {"servers", "coordinators", "clients", "operators", "databases"}
    check_node(node, everything, {"PostgreSQL"})
    check_node(other, {"servers"}, {"PostgreSQL"})


def test_servers_are_reached_by_coordinators_only(node: Node, other: Node) -> None:
    """node1 has the coordinator; this machine and node2 have none."""
    first, second = find_address(node), find_address(other)
    for port in (5001, 5002):
        assert lets_in(node, second, port)
        assert not lets_in(other, first, port)
        assert not is_let_in(first, port)
        assert not is_let_in(second, port)
    for address in (first, second):
        assert is_let_in(address, 22)
    assert is_let_in(first, 8000)
    assert lets_in(other, first, 8000)


def test_the_database_is_reached_by_servers_only(node: Node, other: Node) -> None:
    address = find_address(node)
    assert lets_in(other, address, 5432)
    assert not is_let_in(address, 5432)
    node.run("systemctl", "stop", "sealrelay-firewall.service")
    try:
        assert is_let_in(address, 5432), "it was the firewall that refused"
    finally:
        node.run("systemctl", "start", "sealrelay-firewall.service")


@pytest.mark.long
@pytest.mark.usefixtures("settled")
def test_rules_that_lock_a_coordinator_out_are_taken_back(
    node: Node, other: Node, control: Control
) -> None:
    """As where its connections come from another address than the inventory's."""
    address = find_address(other)
    rules = other.run("nft", "list", "table", "inet", "sealrelay")
    callers = {"servers": ["192.0.2.1"], "coordinators": [], "databases": ["192.0.2.1"]}
    locked_out = f"node1 no longer reaches {address} port 5001"
    for former in (True, False):
        if not former:
            off = {"firewall_enabled": False}
            assert control.play("playbooks/firewall.yml", variables=off).code == 0
        play = control.play("playbooks/firewall.yml", variables={"_firewall_callers": callers})
        assert play.code != 0
        assert "The firewall's new rules were taken back on node2" in play.text
        assert locked_out in play.text
        assert lets_in(node, address, 5001)
        left = other.try_run("nft", "list", "table", "inet", "sealrelay")
        assert left.stdout == (rules if former else "")
    assert control.play("playbooks/firewall.yml").code == 0
    assert other.run("nft", "list", "table", "inet", "sealrelay") == rules


def test_one_host_prunes_for_all(node: Node, other: Node) -> None:
    assert node.is_active("sealrelay-prune.timer")
    assert other.show("sealrelay-prune.timer", "LoadState") == "not-found"
    (receipt,) = node.send("to be kept")
    node.run("systemctl", "start", "sealrelay-prune.service")
    assert node.show("sealrelay-prune.service", "Result") == "success"
    assert node.run("sealrelay", "messages", "show", receipt["message_id"])


@pytest.mark.usefixtures("settled")
def test_a_restarted_database_costs_no_message(node: Node) -> None:
    unit = node.shell('pg_lsclusters --no-header | awk \'{print "postgresql@" $1 "-" $2}\'')
    with Sender(node) as sender:
        sender.wait_for_more(50)
        node.run("systemctl", "restart", unit.strip())
        sender.wait_for_more(50)
        node.run("systemctl", "kill", "--signal=KILL", unit.strip())
        node.run("systemctl", "start", unit.strip())
        sender.wait_for_more(50)
    _assert_stored_once(node, sender.finish())


@pytest.mark.long
@pytest.mark.usefixtures("settled")
def test_the_game_day_restarts_the_database(control: Control, tmp_path: Path) -> None:
    play = hold(control, tmp_path / "reports", "store_restart", failover_check_rate=50)
    fault = read_report(tmp_path / "reports")["store_restart"]
    assert fault["outcome"] != "skipped", play.out
    assert_unharmed(fault)


@pytest.mark.usefixtures("settled")
def test_a_host_that_loses_its_power_costs_no_message(node: Node, other: Node, lab: str) -> None:
    with Sender(node) as sender:
        sender.wait_for_server("node2-5001")
        other.try_run("systemctl", "poweroff", "--force", "--force")
        other.disconnect()
        sender.wait_for_more(100)
        lab_command(lab, "up", "node2")
        sender.wait_for_server("node2-5001")
    receipts = sender.finish()
    _assert_stored_once(node, receipts)


@pytest.mark.long
def test_failover_check_takes_a_server_of_the_other_host(
    node: Node, control: Control, tmp_path: Path
) -> None:
    variables = {"failover_check_report_dir": str(tmp_path), "failover_check_host": "node2"}
    play = control.play("playbooks/failover_check.yml", variables=variables)
    assert play.code == 0, play.out
    (path,) = tmp_path.glob("failover_check-*.json")
    report = json.loads(path.read_text())
    assert report["stopped"]["name"] == report["after"]["served_by"] == "node2-5001"
    assert report["during"]["served_by"] in _EVERY_SERVER - {"node2-5001"}


def test_a_second_run_changes_nothing_and_shows_no_password(control: Control) -> None:
    secrets = [control.passphrase, (control.pki / "store_password").read_text().strip()]
    # Of the servers' hosts, the one that the tests of one host don't have.
    for playbook, host in (("playbooks/database.yml", "node1"), ("site.yml", "node2")):
        play = control.play(playbook, "--diff", "-vvv", "--limit", host)
        assert play.code == 0, play.out
        assert play.changed == 0, play.out
        assert not find_secrets(play.out, secrets)


def test_a_password_that_does_not_work_is_taken_back(
    node: Node, other: Node, control: Control
) -> None:
    password = (control.pki / "store_password").read_text().strip()
    # For the servers only: the database's role has it from the same variable.
    wrong = {"server_store_password": "not-this-one", "postgresql_password": password}
    play = control.deploy(variables=wrong)
    assert play.code != 0
    assert "Check that the store answers" in play.text
    assert "the previous release serves again" in play.text
    assert "not-this-one" not in play.out
    for each in (node, other):
        assert password in each.read(_PASSFILE)
        assert password in each.read(f"{_PASSFILE}.good")
        assert each.run("stat", "-c", "%a", f"{_PASSFILE}.good").strip() == "600"
        assert "refused" not in _connect(each), "a server that connects anew is let in"


@pytest.mark.usefixtures("settled")
def test_all_servers_leave_a_store_together_or_not_at_all(
    node: Node, other: Node, control: Control
) -> None:
    url = "postgresql://sealrelay@192.0.2.1/another"
    play = control.deploy(variables={"server_store": url})
    assert play.code != 0
    assert f"but server_store is {url} now" in play.text
    assert play.changed == 0
    allowed = {"server_store": url, "server_store_change": True}
    play = control.deploy("--limit", "node1", variables=allowed)
    assert play.code != 0
    assert "run this without --limit" in play.text
    assert play.changed == 0
    for each in (node, other):
        assert all(each.is_active(unit) for unit in SERVERS)


def test_postgresql_waits_for_the_network(node: Node) -> None:
    unit = node.shell('pg_lsclusters --no-header | awk \'{print "postgresql@" $1 "-" $2}\'')
    assert "network-online.target" in node.show(unit.strip(), "After").split()
    assert node.show(unit.strip(), "NeedDaemonReload") == "no"


def test_a_password_in_the_stores_url_is_refused(control: Control) -> None:
    url = "postgresql://sealrelay:not-so-secret@db.example.net/sealrelay"
    play = control.deploy(variables={"server_store": url})
    assert play.code != 0
    assert "server_store of node1 holds a password" in play.text
    assert "not-so-secret" not in play.out
    assert play.changed == 0
