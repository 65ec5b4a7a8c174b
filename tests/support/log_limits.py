"""journald's rate limit, lowered on a lab node until it drops lines of the services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.node import COORDINATOR, SERVERS, Node

_SERVICES = (COORDINATOR, *SERVERS)


@contextmanager
def lower_limits_of_units(node: Node) -> Iterator[None]:
    """Each service may write some 5 to 30 lines in 5 seconds, the more the larger the disk."""
    folders = [f"/run/systemd/system/{unit}.d" for unit in _SERVICES]
    limits = "[Service]\nLogRateLimitIntervalSec=5\nLogRateLimitBurst=5\n"
    try:
        node.run("mkdir", "-p", *folders)
        for folder in folders:
            node.write(f"{folder}/limits-of-a-test.conf", limits, "0644")
        _restart_services(node)
        yield
    finally:
        node.run("rm", "-r", *folders)
        _restart_services(node)


@contextmanager
def lower_default_limit(node: Node) -> Iterator[None]:
    """Whoever has no limit of its own may write some 10 to 60 lines in 30 seconds."""
    path = "/etc/systemd/journald.conf.d/limits-of-a-test.conf"
    limits = "[Journal]\nRateLimitIntervalSec=30s\nRateLimitBurst=10\n"
    try:
        node.write(path, limits, "0644")
        node.run("systemctl", "restart", "systemd-journald")
        yield
    finally:
        node.run("rm", path)
        node.run("systemctl", "restart", "systemd-journald")


def _restart_services(node: Node) -> None:
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", *_SERVICES)
    node.settle()
