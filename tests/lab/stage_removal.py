"""Removal of a deployment, first without its data, then with it. Only for a disposable node."""

from __future__ import annotations

import json

from tests.support.host_state import compare, look_at
from tests.support.listener import is_let_in, listening
from tests.support.node import REPOSITORY, UNITS, Control, Node

BEFORE = REPOSITORY / ".cache" / "molecule" / "before.json"
"""What ``stage_fresh`` saw."""
_DATA = ("/var/lib/sealrelay", "sealrelay-server")


def test_removal_asks_first(node: Node, control: Control) -> None:
    play = control.play("playbooks/uninstall.yml")
    assert play.code != 0
    assert "Nothing was changed; run it again with -e uninstall_confirm=true" in play.text
    assert play.changed == 0
    for unit in UNITS:
        assert node.is_active(unit)


def test_removal_leaves_the_host_as_it_was_and_keeps_data_and_ca(
    node: Node, control: Control
) -> None:
    with listening(node, 5001) as address:
        assert not is_let_in(address, 5001)
        play = control.play("playbooks/uninstall.yml", variables={"uninstall_confirm": True})
        assert play.code == 0, play.out
        # The package that could list the firewall's table is gone with it.
        assert is_let_in(address, 5001)
    before = json.loads(BEFORE.read_text())
    left = [line for line in compare(before, look_at(node)) if not any(x in line for x in _DATA)]
    assert left == []
    for path in ("messages.db", "keyrings/client1.keys", "keyrings/client2.keys"):
        node.run("test", "-s", f"/var/lib/sealrelay/{path}")
    assert (control.pki / "ca.key").exists()
    assert (control.pki / "ca.pem").exists()


def test_removal_with_data_leaves_nothing(node: Node, control: Control) -> None:
    variables = {"uninstall_confirm": True, "uninstall_data": True, "uninstall_ca": True}
    play = control.play("playbooks/uninstall.yml", variables=variables)
    assert play.code == 0, play.out
    assert compare(json.loads(BEFORE.read_text()), look_at(node)) == []
    assert [path.name for path in control.pki.iterdir()] == ["passphrase"]
    BEFORE.unlink()


def test_removing_what_is_not_there_changes_nothing(control: Control) -> None:
    play = control.play("playbooks/uninstall.yml", variables={"uninstall_confirm": True})
    assert (play.code, play.changed) == (0, 0), play.out
