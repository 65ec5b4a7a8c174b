"""A task that is delegated to another host may find it away, and must not end the play.

With ``any_errors_fatal`` of the play, ``ignore_unreachable`` alone ends it all the same, and the
recap tells of no failure (findings/ignored_unreachable_ends_the_play.sh).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repo.conftest import REPOSITORY, tracked_files
from tests.repo.templates import list_tasks

_FILES = tracked_files(
    "site.yml", "playbooks/*.yml", "roles/*/tasks/*.yml", "roles/*/handlers/*.yml"
)


_NEEDS_ALL = "roles/failover_check"
"""It breaks services, and needs every host. Its preflight names those that are away."""


def find_faults(text: object) -> list[str]:
    """The names of the tasks that would end the play."""
    return [
        str(task.get("name"))
        for task in list_tasks(text)
        if (_asks_another(task) or task.get("ignore_unreachable")) and not _goes_on(task)
    ]


def _asks_another(task: dict[str, Any]) -> bool:
    return bool(task.get("delegate_to", "localhost") != "localhost")


def _goes_on(task: dict[str, Any]) -> bool:
    # With run_once it is fatal for all again.
    return bool(
        task.get("ignore_unreachable")
        and task.get("any_errors_fatal") is False
        and not task.get("run_once")
    )


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_who_may_be_away_ends_no_play(path: Path) -> None:
    if str(path).startswith(str(REPOSITORY / _NEEDS_ALL)) and path.name != "preflight.yml":
        pytest.skip("it needs all")
    assert find_faults(yaml.safe_load(path.read_text())) == []


def test_the_search_finds_such_a_task() -> None:
    task: dict[str, Any] = {"name": "Ask", "ignore_unreachable": True}
    play = {"tasks": [{"block": [task]}], "any_errors_fatal": True}
    assert find_faults([play]) == ["Ask"]
    task["any_errors_fatal"] = False
    assert find_faults([play]) == []
    task |= {"delegate_to": "{{ item }}", "ignore_unreachable": False}
    assert find_faults([play]) == ["Ask"]
