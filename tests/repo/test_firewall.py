"""How the firewall finds out who is to be let in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.repo.conftest import REPOSITORY

_PROGRAM = REPOSITORY / "roles" / "firewall" / "files" / "find_addresses.py"


def _find(*sources: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, _PROGRAM, json.dumps({"all": sources})],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout)["all"]
    return found


def test_addresses_and_networks_are_taken_as_they_are() -> None:
    found = _find("2001:db8::7", "192.0.2.9", "198.51.100.0/24", "fe80::/10")
    assert found["ipv4"] == ["192.0.2.9/32", "198.51.100.0/24"]
    assert found["ipv6"] == ["2001:db8::7/128", "fe80::/10"]
    assert found["unknown"] == {}


def test_what_overlaps_becomes_one() -> None:
    found = _find("10.1.2.3", "10.0.0.0/8", "10.1.2.3", "10.1.0.0/16", "192.0.2.1/25")
    assert found["ipv4"] == ["10.0.0.0/8", "192.0.2.0/25"]


def test_the_order_plays_no_part() -> None:
    sources = ["192.0.2.3", "2001:db8::1", "192.0.2.1", "2001:db8::9"]
    assert _find(*sources) == _find(*reversed(sources))


def test_what_says_nothing_about_another_host_is_named_with_the_reason() -> None:
    found = _find("no-such-host.invalid", "192.0.2.0/33", "localhost", "192.0.2.1")
    assert found["ipv4"] == ["192.0.2.1/32"]
    assert set(found["unknown"]) == {"no-such-host.invalid", "192.0.2.0/33", "localhost"}
    assert found["unknown"]["localhost"] == "only this host's loopback address"
    assert found["unknown"]["no-such-host.invalid"]
