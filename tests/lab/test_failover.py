"""Services stop, die and restart while clients send: nobody loses a message."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.log_limits import lower_limits_of_units
from tests.support.node import (
    COORDINATOR,
    SERVERS,
    UNITS,
    Control,
    Node,
    Play,
    Sender,
    read_receipts,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("settled")


def _send_fifty_while(node: Node, scratch: str, command: str) -> list[dict[str, Any]]:
    """Send 50 messages, and 50 again for as long as a command takes; the receipts of all."""
    send = "sealrelay send --client client1 --json --count 50 fifty"
    out = node.shell(
        f"{send} & sender=$!\n"
        f"{command} & command=$!\n"
        f"wait $sender\n"
        f"while kill -0 $command 2>{scratch}/over; do {send}; done\n"
        f"wait $command\n"
        f"{send}"
    )
    receipts = read_receipts(out)
    assert len(receipts) >= 100
    assert len(receipts) % 50 == 0
    assert {receipt["result"] for receipt in receipts} == {"ok"}
    assert len({receipt["message_id"] for receipt in receipts}) == len(receipts)
    return receipts


def _stored(node: Node, receipts: list[dict[str, Any]]) -> bool:
    """Whether every acknowledged message is in the store."""
    listing = node.run("sealrelay", "messages", "list", "--json", "--limit", "5000")
    stored = {message["message_id"] for message in read_receipts(listing)}
    return {receipt["message_id"] for receipt in receipts} <= stored


@pytest.mark.parametrize("port", [5001, 5002])
def test_a_stopped_server_costs_no_message(node: Node, scratch: str, port: int) -> None:
    receipts = _send_fifty_while(node, scratch, f"systemctl stop sealrelay-server@{port}")
    assert not node.is_active(f"sealrelay-server@{port}.service")
    other = node.server_name(10003 - port)
    assert {receipt["served_by"] for receipt in receipts[-50:]} == {other}
    assert _stored(node, receipts)


def test_the_journal_names_the_server_that_failed_and_its_return(node: Node) -> None:
    since = node.now()
    with Sender(node) as sender:
        node.run("systemctl", "stop", SERVERS[0])
        sender.wait_for_more()
        node.wait_for_journal(COORDINATOR, "Server https://127.0.0.1:5001 failed: ", since)
        node.run("systemctl", "start", SERVERS[0])
        # Refused, or reset where the stop came between connecting and the handshake.
        failed = r"^Server https://127\.0\.0\.1:5001 failed: Connection (refused|reset by peer)$"
        assert re.search(failed, node.journal(COORDINATOR, since=since), re.MULTILINE)
        healthy = "Server https://127.0.0.1:5001 is healthy again"
        node.wait_for_journal(COORDINATOR, healthy, since)
        # Not at once where its first answers come late: it counts as slow then, and is asked later.
        sender.wait_for_server(node.server_name(5001))
        sender.wait_for_server(node.server_name(5002))
    sender.finish()


def test_a_restarted_coordinator_costs_no_message(node: Node, scratch: str) -> None:
    before = node.show(COORDINATOR, "MainPID")
    receipts = _send_fifty_while(node, scratch, f"systemctl restart {COORDINATOR}")
    assert node.show(COORDINATOR, "MainPID") != before
    assert _stored(node, receipts)


def test_a_client_that_sends_all_the_time_sees_no_restart(node: Node) -> None:
    with Sender(node) as sender:
        node.run("systemctl", "restart", COORDINATOR)
        sender.wait_for_more()
        for unit in SERVERS:
            node.run("systemctl", "restart", unit)
            sender.wait_for_more()
    assert _stored(node, sender.finish())


def test_no_connection_is_refused_while_the_coordinator_restarts(node: Node) -> None:
    command = ["systemctl", "restart", COORDINATOR]
    seen = node.program("connect_while", {"port": 8000, "command": command})
    assert seen["code"] == 0
    assert seen["connected"] > 50
    assert (seen["refused"], seen["failed"]) == (0, 0)
    # A server has no socket unit, and the same loop does see that.
    command = ["systemctl", "restart", SERVERS[0]]
    assert node.program("connect_while", {"port": 5001, "command": command})["refused"] > 0


@pytest.mark.parametrize("unit", [SERVERS[0], COORDINATOR])
def test_a_killed_service_comes_back_by_itself(node: Node, unit: str) -> None:
    before = node.show(unit, "MainPID")
    with Sender(node) as sender:
        node.run("kill", "-9", before)
        wait_for(
            lambda: node.show(unit, "MainPID") not in (before, "0") and node.is_active(unit),
            f"{unit} runs again",
        )
        sender.wait_for_more()
    sender.finish()


# What a server does that is frozen in a commit, without the need to catch that moment.
_KEEP_THE_STORE = """
import fcntl, os, signal
turn = os.open("/var/lib/sealrelay/messages.db.turn", os.O_RDWR)
fcntl.lockf(turn, fcntl.LOCK_EX)
print("mine", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_process_frozen_while_it_keeps_the_store_is_ended(node: Node) -> None:
    since = node.now()
    python = "/opt/sealrelay/current/bin/python"
    keeper = "sealrelay-test-keeper"
    run = ["systemd-run", "--quiet", "--collect", "--uid=sealrelay-server", f"--unit={keeper}"]
    node.run(*run, python, "-c", _KEEP_THE_STORE)
    try:
        with Sender(node) as sender:
            sender.wait_for_more()
            wait_for(lambda: not node.is_active(keeper), "the frozen process is ended")
        assert _stored(node, sender.finish())
    finally:
        node.try_run("systemctl", "kill", "--signal=KILL", keeper)
    journals = "".join(node.journal(unit, since=since) for unit in SERVERS)
    assert re.search(r"Ended process \d+, which was stopped while it kept the store", journals)


def test_with_no_server_the_client_is_told_in_time(node: Node, scratch: str) -> None:
    node.shell(f"cp -a /etc/sealrelay/clients/client1/. {scratch}/")
    config = f"{scratch}/client.toml"
    node.shell(f"sed -i 's/^deadline.*/deadline = 3.0/' {config}")
    node.run("systemctl", "stop", *SERVERS)
    began = time.monotonic()
    done = node.try_run("sealrelay", "send", "--config", config, "nobody")
    assert done.returncode == 3, done.stderr
    assert "503" in done.stderr
    assert time.monotonic() - began < 10


def test_a_failed_start_is_noticed(node: Node, scratch: str) -> None:
    folder = "/etc/sealrelay/servers/5009"
    node.shell(
        f"cp -a /etc/sealrelay/servers/5001 {folder} && cd {folder} && "
        f"sed -i 's/5001/5009/; s/^workers.*/wrokers = 1/' server.toml"
    )
    since = node.now()
    try:
        began = time.monotonic()
        done = node.try_run("systemctl", "start", "sealrelay-server@5009")
        assert done.returncode != 0
        assert time.monotonic() - began < 40
        node.wait_for_journal("sealrelay-server@5009.service", "wrokers", since)
    finally:
        node.shell(f"systemctl stop sealrelay-server@5009; rm -rf {folder}")
        node.try_run("systemctl", "reset-failed", "sealrelay-server@5009")


# --- the playbook that shows it


def _play(control: Control, reports: Path, **variables: Any) -> Play:
    variables["failover_check_report_dir"] = str(reports)
    return control.play("playbooks/failover_check.yml", variables=variables)


@pytest.mark.parametrize("stopped", ["", "sealrelay-server@5002.service"])
def test_failover_check_passes_and_reports(
    node: Node, control: Control, tmp_path: Path, stopped: str
) -> None:
    play = _play(control, tmp_path, **({"failover_check_unit": stopped} if stopped else {}))
    assert play.code == 0, play.out
    stopped = stopped.removesuffix(".service") or "sealrelay-server@5001"
    own, other = (5001, 5002) if stopped.endswith("5001") else (5002, 5001)
    (path,) = tmp_path.glob("failover_check-*.json")
    report = json.loads(path.read_text())
    assert report["stopped"]["unit"] == stopped
    assert report["during"]["served_by"] == node.server_name(other)
    assert report["after"]["served_by"] == node.server_name(own)
    identifier = report["during"]["message_id"]
    assert [line for line in report["coordinator_journal"] if identifier in line]
    assert [line for line in report["server_journal"] if identifier in line]
    assert (report["stored"]["message_id"], report["suppressed"]) == (identifier, [])
    for unit in UNITS:
        assert node.is_active(unit), unit
    stored = json.loads(node.run("sealrelay", "messages", "show", "--json", identifier))
    assert stored["server"] == node.server_name(other)


def test_failover_check_proves_it_where_journald_drops_lines(
    node: Node, control: Control, tmp_path: Path
) -> None:
    load = ("sealrelay", "load", "--quiet", "--rate", "100", "--seconds", "300")
    with lower_limits_of_units(node):
        folder = node.run("mktemp", "-d").strip()
        node.run(
            *("systemd-run", "--quiet", "--collect", "--unit=sealrelay-test-load"),
            *(*load, "--client", "client1", f"{folder}/history"),
        )
        try:
            play = _play(control, tmp_path)
        finally:
            node.run("systemctl", "stop", "sealrelay-test-load")
            node.run("rm", "-r", folder)
    assert play.code == 0, play.out
    report = json.loads(next(tmp_path.glob("failover_check-*.json")).read_text())
    assert report["stored"]["message_id"] == report["during"]["message_id"]
    assert report["stored"]["server"] == node.server_name(5002)
    assert any("messages from sealrelay-" in line for line in report["suppressed"]), report
    assert "So lines are missing: the limit in force is not that of our units" in play.text


def test_failover_check_fails_where_the_store_does_not_have_the_message(
    node: Node, control: Control, tmp_path: Path
) -> None:
    command = "/opt/sealrelay/current/bin/sealrelay"
    node.run("cp", "-p", command, f"{command}.good")
    try:
        # Whoever asks is shown another message than the one that was stored.
        other = node.send("another one")[0]["message_id"]
        node.write(
            command,
            f'#!/bin/sh\n[ "$1" != messages ] || set -- messages show --json {other}\n'
            f'exec {command}.good "$@"\n',
            "0755",
        )
        play = _play(control, tmp_path)
    finally:
        node.run("mv", f"{command}.good", command)
    assert play.code != 0
    assert "The failover was not proven. Check that the other server stored it" in play.text
    assert "and the store says otherwise: " in play.text
    assert node.is_active(SERVERS[0])


def test_failover_check_refuses_an_unknown_unit(
    node: Node, control: Control, tmp_path: Path
) -> None:
    pids = [node.show(unit, "MainPID") for unit in SERVERS]
    play = _play(control, tmp_path, failover_check_unit="sealrelay-server@5003")
    assert play.code != 0
    assert "There is no server unit 'sealrelay-server@5003' on node1" in play.text
    assert "sealrelay-server@5001" in play.text, "it says which there are"
    assert [node.show(unit, "MainPID") for unit in SERVERS] == pids


def test_failover_check_leaves_stopped_servers_as_they_are(
    node: Node, control: Control, tmp_path: Path
) -> None:
    node.run("systemctl", "stop", *SERVERS)
    play = _play(control, tmp_path)
    assert play.code != 0
    assert "Nothing was stopped, since the deployment is not healthy" in play.text
    for unit in SERVERS:
        assert f"{unit.removesuffix('.service')} on node1" in play.text
        assert not node.is_active(unit)
    assert node.is_active(COORDINATOR)
    assert not list(tmp_path.iterdir())
