"""What the benchmarks make of their measurements."""

from __future__ import annotations

import json

import pytest

from benchmarks.failover import Trial
from benchmarks.page import PAGE, RESULTS, render_page
from benchmarks.report import (
    format_markdown,
    summarize_faults,
    summarize_throughput,
    summarize_timelines,
    throughput_lines,
)
from benchmarks.spec import Answer
from benchmarks.tally import judge, measure_throughput, median, percentile
from benchmarks.throughput import Sample


def answer(name: str, due: float = 0.0, seconds: float = 0.01, status: int = 200) -> Answer:
    return Answer(due, seconds, status, name)


def sample(peer: str, rps: float, connections: int = 16) -> Sample:
    return Sample(peer, connections, rps, 1.0, 2.0, 0, 0, 0.5, 0.6, 0.1)


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)]
)
def test_percentile_is_a_value_that_was_measured(share: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_median_is_the_middle() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5


def test_throughput_counts_the_answers_within_the_window() -> None:
    early = answer("early", due=0.5, seconds=0.4)
    late = answer("late", due=2.9, seconds=0.2)
    failed = answer("failed", due=1.5, status=503)
    within = [answer(f"{number}", due=1 + number / 50, seconds=0.005) for number in range(100)]
    found = measure_throughput([early, *within, failed, late], 1.0, 3.0)
    assert found.rps == 50
    assert found.p50_ms == pytest.approx(5)
    assert found.failed == 1


def test_fate_of_messages_is_judged_by_the_store() -> None:
    answers = [
        answer("stored"),
        answer("slow", seconds=0.3),
        answer("refused", status=503),
        answer("unanswered", seconds=8.0, status=0),
        answer("acknowledged in vain"),
        answer("two rows"),
        answer("inserted twice"),
    ]
    rows = {"stored": 1, "slow": 1, "unanswered": 1, "two rows": 2, "inserted twice": 1}
    fate = judge(answers, rows, {"stored": 1, "inserted twice": 2}, fault_begins=0.2)
    assert (fate.sent, fate.failed, fate.lost, fate.doubled) == (7, 2, 1, 2)
    assert fate.over_250ms == 2
    assert fate.worst_ms == 8000
    assert fate.worst_before_ms == 10


def test_throughput_results_hold_median_and_spread() -> None:
    samples = [sample("haproxy", 200), sample("sealrelay", 100), sample("sealrelay", 400)]
    samples += [sample("sealrelay", 300), sample("sealrelay", 50, connections=1)]
    summary = summarize_throughput(samples)
    assert list(summary) == ["1", "16"]
    row = summary["16"]["sealrelay"]
    assert (row["rps"], row["rps_spread"], row["rounds"]) == (300, [100, 400], 3)
    assert {"rps", "p50_ms", "p99_ms"} <= row.keys()
    table = format_markdown(throughput_lines(summary))
    assert "| 16 | sealrelay | 300 | 100-400 |" in table
    assert table.splitlines()[-1].endswith("| 1.50 |")


def test_fault_results_add_up_over_rounds() -> None:
    trials = [
        Trial("nginx", "freeze", judge(answers, {"a": 1, "b": 1}, {}, 1.0), 1.0, 0, answers)
        for answers in (
            [answer("a", due=0.05), answer("b", due=0.25, seconds=0.4)],
            [answer("a", seconds=2.0, status=0)],
        )
    ]
    row = summarize_faults(trials)["freeze"]["nginx"]
    assert {key: row[key] for key in ("sent", "failed", "lost", "doubled", "over_250ms")} == {
        "sent": 3,
        "failed": 1,
        "lost": 0,
        "doubled": 0,
        "over_250ms": 2,
    }
    assert row["worst_ms"] == 2000
    assert summarize_timelines(trials, 0.1, 0.3) == {"freeze": {"nginx": [10.0, 0.0, 400.0]}}


def test_page_shows_the_committed_results() -> None:
    results = json.loads((RESULTS / "latest.json").read_text())
    page = PAGE.read_text()
    assert render_page(page, results) == page, "write it anew with bin/bench"
    for part in ("machine", "throughput", "faults"):
        assert f"<!-- {part} -->\n<!-- end -->" not in page
