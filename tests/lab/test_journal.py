"""Every line of a service reaches the journal, however many there are."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.log_limits import lower_default_limit
from tests.support.node import COORDINATOR, SERVERS, Node, wait_for

_MANY = 100_000
"""Lines: more than journald lets through by itself in 30 seconds, 60,000 on the largest disk."""


@contextmanager
def _lines_written(node: Node, count: int, *properties: str) -> Iterator[Callable[[], int]]:
    """A unit has written so many lines; what is yielded counts those that are in the journal."""
    since = node.now()
    # Two, since journald adds up what a unit of a name has written.
    unit = f"sealrelay-test-lines-{'limited' if properties else 'unlimited'}"
    # It remains, since journald forgets a unit's limits with the unit, and may be late in reading.
    run = ["systemd-run", "--quiet", "--service-type=oneshot", "--remain-after-exit"]
    given = [f"--property={text}" for text in properties]
    # Sorted, since a line may be there twice where journald went on to another file.
    look = f"journalctl --no-pager --quiet --output=cat --since={since} --unit={unit}"
    try:
        node.run(*run, *given, f"--unit={unit}", "seq", str(count))
        yield lambda: int(node.shell(f"{look} --grep='^[0-9]+$' | sort -u | wc -l"))
    finally:
        node.run("systemctl", "stop", unit)


def _loses_lines(node: Node, count: int) -> bool:
    """Whether journald drops lines of a unit without limits of its own that writes so many."""
    with _lines_written(node, count) as count_kept:
        before, kept = 0, count_kept()
        while kept != before:  # it is still reading
            time.sleep(1)
            before, kept = kept, count_kept()
    return kept < count


@pytest.mark.parametrize("unit", [COORDINATOR, SERVERS[0], "sealrelay-prune.service"])
def test_limits_of_a_unit_keep_more_lines_than_journald_does(node: Node, unit: str) -> None:
    limits = [
        f"LogRateLimit{wanted}={node.show(unit, f'LogRateLimit{shown}')}"
        for wanted, shown in (("IntervalSec", "IntervalUSec"), ("Burst", "Burst"))
    ]
    with _lines_written(node, _MANY, *limits) as count_kept:
        wait_for(lambda: count_kept() == _MANY, "every line is there", seconds=60)


def test_without_limits_of_its_own_a_unit_loses_lines(node: Node) -> None:
    assert _loses_lines(node, _MANY)


def _lacks_lines(node: Node, units: tuple[str, ...], said: str, since: str, ids: set[str]) -> bool:
    """Whether a message's line is not in the journal, or another one was dropped."""
    lines = node.journal(*units, since=since)
    found = re.findall(rf"^{said} ([0-9a-f]{{64}}) ", lines, re.MULTILINE)
    return not ids <= set(found) or "Suppressed" in lines


@pytest.mark.usefixtures("settled")
def test_every_message_is_in_the_journal_whatever_others_may_write(node: Node) -> None:
    with lower_default_limit(node):
        since = node.now()
        ids = {receipt["message_id"] for receipt in node.send("--count", "400", "many")}
        assert _loses_lines(node, 400), "the limit is in force"
        for units, said in (((COORDINATOR,), "Message"), (SERVERS, "Stored message")):
            assert not _lacks_lines(node, units, said, since, ids), said
