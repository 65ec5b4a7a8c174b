"""A task that is delegated to another host may find it away, and must not end the play.

With ``any_errors_fatal`` of the play, ``ignore_unreachable`` alone ends it all the same, and the
recap tells of no failure (findings/ignored_unreachable_ends_the_play.sh).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repo.conftest import REPOSITORY, tracked_files

_FILES = tracked_files(
    "site.yml", "playbooks/*.yml", "roles/*/tasks/*.yml", "roles/*/handlers/*.yml"
)


_NEEDS_ALL = "roles/failover_check"
"""It breaks services, and needs every host. Its preflight names those that are away."""


def find_faults(node: Any) -> Iterator[str]:
    """The names of the tasks that would end the play."""
    if isinstance(node, list):
        for item in node:
            yield from find_faults(item)
    elif isinstance(node, dict):
        asks_another = node.get("delegate_to", "localhost") != "localhost"
        goes_on = (
            node.get("ignore_unreachable")
            and node.get("any_errors_fatal") is False
            and not node.get("run_once")  # which makes it fatal for all again
        )
        if (asks_another or node.get("ignore_unreachable")) and not goes_on:
            yield str(node.get("name"))
        for value in node.values():
            yield from find_faults(value)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_who_may_be_away_ends_no_play(path: Path) -> None:
    if str(path).startswith(str(REPOSITORY / _NEEDS_ALL)) and path.name != "preflight.yml":
        pytest.skip("it needs all")
    assert list(find_faults(yaml.safe_load(path.read_text()))) == []


def test_the_search_finds_such_a_task() -> None:
    task: dict[str, Any] = {"name": "Ask", "ignore_unreachable": True}
    play = {"tasks": [{"block": [task]}], "any_errors_fatal": True}
    assert list(find_faults([play])) == ["Ask"]
    task["any_errors_fatal"] = False
    assert list(find_faults([play])) == []
    task |= {"delegate_to": "{{ item }}", "ignore_unreachable": False}
    assert list(find_faults([play])) == ["Ask"]
