"""What somebody changed on a host by hand, the next run of site.yml puts right and tells of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support.node import SERVERS, Control, Node

_SETTINGS = "/etc/sealrelay/servers/5001/server.toml"
_UNIT = "/etc/systemd/system/sealrelay-coordinator.service"
_KEY = "/etc/sealrelay/servers/5002/key.pem"
_LEAF = "/etc/sealrelay/clients/client1/cert.pem"
_KEYRING = "/var/lib/sealrelay/keyrings/client1.keys"
_EXTRA = "/etc/sealrelay/servers/5003"
_CURRENT = "/opt/sealrelay/current"
_OTHER = "/opt/sealrelay/other"


@dataclass(frozen=True)
class Change:
    """A change by hand: how it is made, whether it is undone, and the task that tells of it."""

    script: str
    is_undone: Callable[[Node], bool]
    task: str


def _counts_keys(node: Node, path: str) -> int:
    return int(node.shell(f"grep -c '^[^#]' {path} || true"))


CHANGES = {
    "a setting is edited": Change(
        f"sed -i 's/^token_ttl = .*/token_ttl = 4242/' {_SETTINGS}",
        lambda node: "4242" not in node.read(_SETTINGS),
        "server : Write the servers' settings and units",
    ),
    "a unit file is edited": Change(
        f"echo '# by hand' >>{_UNIT}",
        lambda node: "by hand" not in node.read(_UNIT),
        "coordinator : Write the coordinator's settings and units",
    ),
    "a unit is stopped": Change(
        f"systemctl stop {SERVERS[1]}",
        lambda node: node.is_active(SERVERS[1]),
        "server : Run the server",
    ),
    "a unit is disabled": Change(
        "systemctl disable --quiet sealrelay-coordinator.socket sealrelay-prune.timer",
        lambda node: (
            node.show("sealrelay-coordinator.socket", "UnitFileState") == "enabled"
            and node.show("sealrelay-prune.timer", "UnitFileState") == "enabled"
        ),
        "coordinator : Hold the port",
    ),
    "a key's mode is widened": Change(
        f"chmod 0644 {_KEY}",
        lambda node: node.run("stat", "-c", "%a %G", _KEY).split() == ["640", "sealrelay-server"],
        "certificate : Put leaves, CAs and CRLs beside their keys",
    ),
    "a leaf is deleted": Change(
        f"rm {_LEAF}",
        lambda node: node.try_run("test", "-s", _LEAF).returncode == 0,
        "certificate : Sign the leaves with the CA",
    ),
    "the firewall's table is flushed": Change(
        "nft flush table inet sealrelay",
        lambda node: "tcp dport" in node.run("nft", "list", "table", "inet", "sealrelay"),
        "firewall : Load the rules",
    ),
    "the current release is another": Change(
        f"cp -a $(readlink {_CURRENT}) {_OTHER}; ln -sfn {_OTHER} {_CURRENT}",
        lambda node: "/releases/" in node.run("readlink", _CURRENT),
        "runtime : Make the release the current one",
    ),
    "a keyring's line is removed": Change(
        f"sed -i '/^[^#]/d' {_KEYRING}",
        lambda node: _counts_keys(node, _KEYRING) > 0,
        "payload_keys : Tell the keyrings which key each client seals with, and which it will",
    ),
    "a server's folder is left over": Change(
        f"cp -a /etc/sealrelay/servers/5002 {_EXTRA}",
        lambda node: node.try_run("test", "-e", _EXTRA).returncode == 1,
        "server : Remove their settings and leaves",
    ),
}


@pytest.mark.usefixtures("settled")
def test_changes_by_hand_are_undone_and_told(node: Node, control: Control) -> None:
    try:
        for change in CHANGES.values():
            node.shell(change.script)
        left = [name for name, change in CHANGES.items() if change.is_undone(node)]
        assert left == [], "these changes did nothing"
        play = control.deploy("--diff")
        assert play.code == 0, play.out
        for name, change in CHANGES.items():
            assert change.is_undone(node), f"{name}\n{play.out}"
            told = play.out.partition(f"TASK [{change.task}]")[2].partition("\nTASK [")[0]
            assert "changed: [node1" in told, f"{name}: not told\n{play.out}"
        again = control.deploy()
        assert (again.code, again.changed) == (0, 0), again.out
    finally:
        node.run("rm", "-rf", _OTHER)
    assert node.send("all is well again")
