"""A rehearsal of the first deployment, on a node that has never seen one. Changes nothing."""

from __future__ import annotations

import json

from tests.lab.stage_removal import BEFORE
from tests.support.host_state import compare, look_at
from tests.support.node import Control, Node, find_secrets
from tests.support.secret_paths import FERNET_KEY


def test_node_is_fresh(node: Node) -> None:
    for path in ("/etc/sealrelay", "/var/lib/sealrelay", "/opt/sealrelay"):
        assert node.try_run("test", "-e", path).returncode == 1, f"{path} is there"
    BEFORE.parent.mkdir(parents=True, exist_ok=True)
    BEFORE.write_text(json.dumps(look_at(node)))


def test_a_rehearsal_passes_changes_nothing_and_shows_no_secret(
    node: Node, control: Control
) -> None:
    before = look_at(node)
    play = control.deploy("--check", "--diff", "-vvv")
    assert play.code == 0, play.out
    assert not find_secrets(play.out, [control.passphrase])
    assert not FERNET_KEY.findall(play.out)
    assert compare(before, look_at(node)) == []
    assert [path.name for path in control.pki.iterdir()] == ["passphrase"]
