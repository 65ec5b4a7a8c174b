"""The whole node restarts."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.support.node import UNITS, Node, lab_command, wait_for


@pytest.mark.usefixtures("settled")
def test_after_a_restart_of_the_host_everything_runs_and_is_still_there(
    node: Node, lab: str
) -> None:
    (receipt,) = node.send("before the restart")
    node.run("touch", "/run/before-the-restart")
    node.try_run("systemctl", "reboot")
    node.disconnect()

    def has_gone() -> bool:
        (state,) = (
            entry["state"]
            for entry in json.loads(lab_command(lab, "status", "--json"))["nodes"]
            if entry["name"] == node.name
        )
        if state == "stopped":
            return True
        return node.try_run("test", "!", "-e", "/run/before-the-restart").returncode == 0

    wait_for(has_gone, "the node has stopped", seconds=60)
    lab_command(lab, "up", node.name)
    assert node.try_run("test", "-e", "/run/before-the-restart").returncode == 1

    # Nobody starts them: they come up by themselves.
    for unit in (*UNITS, "sealrelay-firewall.service"):
        wait_for(partial(node.is_active, unit), f"{unit} is active", seconds=60)
    assert "goto servers" in node.run("nft", "list", "table", "inet", "sealrelay")
    assert node.send("after the restart")
    shown = node.run("sealrelay", "messages", "show", "--json", receipt["message_id"])
    assert json.loads(shown)["text"] == "before the restart"
