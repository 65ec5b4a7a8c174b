"""What a load's answers amount to. Pure functions, apart from the measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.spec import Answer

SLOW = 0.25
"""Seconds above which an answer counts as slow."""


@dataclass(frozen=True)
class Throughput:
    """What one relay did in one window of closed-loop load."""

    rps: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True)
class Fate:
    """What became of the messages of one open-loop load."""

    sent: int
    failed: int
    """Messages without a 200."""
    lost: int
    """Messages with a 200 that the store does not have."""
    doubled: int
    """Messages that were inserted more than once."""
    over_250ms: int
    """Messages that took longer than that, failed ones included."""
    worst_ms: float
    worst_before_ms: float
    """Of the messages answered before the fault began: what the machine does to a relay anyway."""
    p50_ms: float
    p99_ms: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` (0 to 1) of them do not exceed.

    Raises ValueError when there are none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of the two in the middle when their number is even."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def measure_throughput(answers: Sequence[Answer], begin: float, end: float) -> Throughput:
    """Answers between ``begin`` and ``end``, seconds since the load began."""
    window = [answer for answer in answers if begin <= answer.due + answer.seconds < end]
    good = [answer.seconds * 1000 for answer in window if answer.status == 200]
    failed = len(window) - len(good)
    if not good:
        return Throughput(0.0, math.inf, math.inf, failed)
    return Throughput(
        rps=len(good) / (end - begin),
        p50_ms=percentile(good, 0.5),
        p99_ms=percentile(good, 0.99),
        failed=failed,
    )


def count_lost(answers: Sequence[Answer], rows: Mapping[str, int]) -> int:
    """How many messages were acknowledged and are not in the store."""
    return sum(answer.status == 200 and answer.message_id not in rows for answer in answers)


def judge(
    answers: Sequence[Answer],
    rows: Mapping[str, int],
    inserted: Mapping[str, int],
    fault_begins: float,
) -> Fate:
    """What became of the messages, given the store's rows for each message id, and how many times
    the servers say they inserted each; the fault began so many seconds after the load."""
    times = [answer.seconds for answer in answers]
    before = [answer.seconds for answer in answers if answer.due + answer.seconds < fault_begins]
    doubled = {
        message_id for counts in (rows, inserted) for message_id in counts if counts[message_id] > 1
    }
    return Fate(
        sent=len(answers),
        failed=sum(answer.status != 200 for answer in answers),
        lost=count_lost(answers, rows),
        doubled=len(doubled),
        over_250ms=sum(seconds > SLOW for seconds in times),
        worst_ms=max(times) * 1000,
        worst_before_ms=max(before, default=0.0) * 1000,
        p50_ms=percentile(times, 0.5) * 1000,
        p99_ms=percentile(times, 0.99) * 1000,
    )
