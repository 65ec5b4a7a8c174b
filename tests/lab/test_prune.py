"""Messages past their retention go, younger ones stay, and a timer sees to it."""

from __future__ import annotations

import json

import pytest

from tests.support.node import SERVERS, Node, Sender

_TIMER, _SERVICE = "sealrelay-prune.timer", "sealrelay-prune.service"
# Makes messages look as if they had been received so many seconds earlier. As the servers' user:
# a file of root's beside the store would lock them out.
_AGE = """
import sqlite3, sys
store = sqlite3.connect("/var/lib/sealrelay/messages.db", timeout=10)
for message_id in sys.argv[2:]:
    changed = store.execute(
        "UPDATE messages SET received_at = received_at - 1000 * ? WHERE id = ?",
        (int(sys.argv[1]), bytes.fromhex(message_id)),
    )
    assert changed.rowcount == 1
store.commit()
"""


def _age(node: Node, seconds: int, *message_ids: str) -> None:
    user = ("setpriv", "--reuid=sealrelay-server", "--regid=sealrelay-server", "--clear-groups")
    node.run(*user, "python3", "-c", _AGE, str(seconds), *message_ids)


def _is_stored(node: Node, message_id: str) -> bool:
    return node.try_run("sealrelay", "messages", "show", message_id).returncode == 0


def _retention(node: Node) -> int:
    settings = node.read("/etc/sealrelay/servers/5001/server.toml")
    (line,) = (line for line in settings.splitlines() if line.startswith("retention = "))
    return int(line.split()[-1])


def test_the_timer_is_active_and_starts_at_boot(node: Node) -> None:
    assert node.is_active(_TIMER)
    assert node.run("systemctl", "is-enabled", _TIMER).strip() == "enabled"
    assert node.show(_TIMER, "Triggers") == _SERVICE
    assert node.show(_TIMER, "Persistent") == "yes"
    assert json.loads(node.run("systemctl", "list-timers", _TIMER, "-o", "json"))[0]["next"]


@pytest.mark.usefixtures("settled")
def test_what_is_past_its_retention_goes_and_the_rest_stays(node: Node) -> None:
    retention = _retention(node)
    old, older, younger, young = (
        node.send(f"prune {name}")[0]["message_id"] for name in ("old", "older", "younger", "young")
    )
    _age(node, retention + 60, old)
    _age(node, 3 * retention, older)
    _age(node, retention - 600, younger)
    with Sender(node) as sender:
        node.run("systemctl", "start", _SERVICE)
        sender.wait_for_more(5)
    receipts = sender.finish()
    assert node.show(_SERVICE, "Result") == "success"
    assert not _is_stored(node, old)
    assert not _is_stored(node, older)
    assert _is_stored(node, younger)
    assert _is_stored(node, young)
    assert _is_stored(node, receipts[0]["message_id"])


def test_it_runs_as_the_servers_user_and_as_urgently(node: Node) -> None:
    assert node.show(_SERVICE, "User") == "sealrelay-server"
    assert node.show(_SERVICE, "Nice") == node.show(SERVERS[0], "Nice"), (
        "who lets it wait lets the servers wait"
    )
    assert node.show(_SERVICE, "Type") == "oneshot"
    modes = node.shell("stat -c '%U %a' /var/lib/sealrelay/messages.db*").split("\n")
    assert {mode for mode in modes if mode} == {"sealrelay-server 640"}
