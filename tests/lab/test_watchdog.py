"""What stands still is ended and starts anew, while messages go on."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest

from tests.support.node import COORDINATOR, SERVERS, Node, Sender, wait_for

_BOUND = 60.0
"""Seconds: 30 of a watchdog, or of gunicorn's for a worker, then those of a stop and a start."""


def _workers(node: Node, unit: str) -> set[int]:
    return {*node.pids(unit)} - {int(node.show(unit, "MainPID"))}


@pytest.mark.usefixtures("settled")
def test_what_stands_still_is_replaced_and_messages_go_on(node: Node) -> None:
    """The main processes of a server and of the coordinator, and the only worker of another server.

    That one gunicorn's master replaces, before systemd would restart the whole service.
    """
    since = node.now()
    stopped, other = SERVERS
    mains = {unit: node.show(unit, "MainPID") for unit in (stopped, COORDINATOR, other)}
    (worker,) = _workers(node, other)

    def is_back(unit: str) -> bool:
        return node.show(unit, "MainPID") not in (mains[unit], "0") and node.is_active(unit)

    stills = [mains[stopped], mains[COORDINATOR], str(worker)]
    with ExitStack() as stack:
        stack.callback(node.try_run, "kill", "-CONT", *stills)  # where nobody has ended them
        sender = stack.enter_context(Sender(node))
        node.run("kill", "-STOP", *stills)
        for unit in (stopped, COORDINATOR):
            wait_for(partial(is_back, unit), f"{unit} runs anew", seconds=_BOUND)
        wait_for(
            lambda: _workers(node, other) not in ({worker}, set()),
            "another worker runs",
            seconds=_BOUND,
        )
        for port in (5001, 5002):
            sender.wait_for_server(node.server_name(port))
    sender.finish()
    for unit in (stopped, COORDINATOR):
        assert "Watchdog timeout" in node.journal(unit, since=since)
    assert node.show(other, "MainPID") == mains[other]
    said = node.journal(other, since=since)
    assert f"WORKER TIMEOUT (pid:{worker})" in said
    assert "Watchdog timeout" not in said
