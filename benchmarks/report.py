"""Results: medians and spread, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.failover import Trial
from benchmarks.spec import Answer
from benchmarks.tally import median
from benchmarks.throughput import Sample

_THROUGHPUT_HEAD = (
    *("connections", "relay", "messages/s", "(min-max)", "p50 ms", "p99 ms", "(min-max)"),
    *("relay CPU ms", "servers CPU ms", "failed", "lost", "x haproxy"),
)

_FAULTS_HEAD = (
    *("fault", "relay", "sent", "failed", "lost", "doubled", "over 250 ms", "worst ms"),
    *("(before)", "p50 ms", "p99 ms", "handed over"),
)
_TIMES = ("worst_ms", "worst_before_ms", "p50_ms", "p99_ms")

Row = dict[str, float | int | list[float]]


def summarize_throughput(samples: Sequence[Sample]) -> dict[str, dict[str, Row]]:
    """``<connections>.<peer>``: medians over the rounds, and the lowest and highest beside them."""
    groups: dict[int, dict[str, list[Sample]]] = {}
    for sample in samples:
        groups.setdefault(sample.connections, {}).setdefault(sample.peer, []).append(sample)
    return {
        str(connections): {peer: _summarize(group) for peer, group in peers.items()}
        for connections, peers in sorted(groups.items())
    }


def _summarize(group: Sequence[Sample]) -> Row:
    row: Row = {"rounds": len(group)}
    for field, digits in (("rps", 1), ("p50_ms", 3), ("p99_ms", 3)):
        values = [getattr(sample, field) for sample in group]
        row[field] = round(median(values), digits)
        row[f"{field}_spread"] = [round(min(values), digits), round(max(values), digits)]
    for field in ("relay_cpu_ms", "servers_cpu_ms", "generator_share"):
        row[field] = round(median([getattr(sample, field) for sample in group]), 3)
    for field in ("failed", "lost"):
        row[field] = sum(getattr(sample, field) for sample in group)
    return row


def throughput_lines(summary: Mapping[str, Mapping[str, Row]]) -> list[list[str]]:
    """The medians as the cells of a table, its head first."""
    lines = [list(_THROUGHPUT_HEAD)]
    for connections, peers in summary.items():
        reference = peers.get("haproxy", {}).get("rps")
        for peer, row in peers.items():
            lines.append(
                [
                    connections,
                    peer,
                    f"{row['rps']:.0f}",
                    _range(row["rps_spread"], 0),
                    f"{row['p50_ms']:.2f}",
                    f"{row['p99_ms']:.1f}",
                    _range(row["p99_ms_spread"], 1),
                    f"{row['relay_cpu_ms']:.2f}",
                    f"{row['servers_cpu_ms']:.2f}",
                    str(row["failed"]),
                    str(row["lost"]),
                    _ratio(row["rps"], reference),
                ]
            )
    return lines


def summarize_faults(trials: Sequence[Trial]) -> dict[str, dict[str, Row]]:
    """``<fault>.<peer>``: sums over the rounds, and the worst of them all."""
    groups: dict[str, dict[str, list[Trial]]] = {}
    for trial in trials:
        groups.setdefault(trial.fault, {}).setdefault(trial.peer, []).append(trial)
    return {
        fault: {peer: _summarize_fate(group) for peer, group in peers.items()}
        for fault, peers in groups.items()
    }


def _summarize_fate(group: Sequence[Trial]) -> Row:
    fates = [trial.fate for trial in group]
    row: Row = {"rounds": len(group)}
    for field in ("sent", "failed", "lost", "doubled", "over_250ms"):
        row[field] = sum(getattr(fate, field) for fate in fates)
    for field in ("worst_ms", "worst_before_ms"):
        row[field] = round(max(getattr(fate, field) for fate in fates), 1)
    for field in ("p50_ms", "p99_ms"):
        row[field] = round(median([getattr(fate, field) for fate in fates]), 2)
    row["handed_to_servers"] = round(median([trial.offered for trial in group]), 3)
    row["fenced"] = sum(trial.fenced for trial in group)
    return row


def summarize_timelines(trials: Sequence[Trial], step: float, seconds: float) -> dict[str, object]:
    """``<fault>.<peer>``: the slowest answer, in ms, to the messages due in each ``step`` of the
    first round's ``seconds``. A failed message counts as what its caller waited in vain."""
    lines: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        peers = lines.setdefault(trial.fault, {})
        if trial.peer not in peers:
            peers[trial.peer] = _timeline(trial.answers, step, seconds)
    return dict(lines)


def _timeline(answers: Sequence[Answer], step: float, seconds: float) -> list[float]:
    worst = [0.0] * math.ceil(seconds / step)
    for answer in answers:
        number = min(int(answer.due / step), len(worst) - 1)
        worst[number] = max(worst[number], round(answer.seconds * 1000, 1))
    return worst


def fault_lines(summary: Mapping[str, Mapping[str, Row]]) -> list[list[str]]:
    """What became of the messages, as the cells of a table, its head first."""
    lines = [list(_FAULTS_HEAD)]
    for fault, peers in summary.items():
        for peer, row in peers.items():
            counts = [str(row[key]) for key in ("sent", "failed", "lost", "doubled", "over_250ms")]
            times = [f"{row[key]:.0f}" for key in _TIMES]
            lines.append([fault, peer, *counts, *times, f"{row['handed_to_servers']:.2f}"])
    return lines


def _range(spread: object, digits: int) -> str:
    assert isinstance(spread, list)
    low, high = spread
    return f"{low:.{digits}f}-{high:.{digits}f}"


def _ratio(value: object, reference: object) -> str:
    if not isinstance(value, (int, float)) or not isinstance(reference, (int, float)):
        return ""
    return f"{value / reference:.2f}" if reference else ""


def format_text(lines: Sequence[Sequence[str]]) -> str:
    """Columns, the first two to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same as a table in Markdown."""
    head, *rest = lines
    aligned = ["---" if number < 2 else "--:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, aligned, *rest))
