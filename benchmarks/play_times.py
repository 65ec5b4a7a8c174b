"""What runs of a playbook took, read from their output, and how two checkouts compare. Pure.

The output is that of the callbacks ``default`` and ``ansible.posix.profile_tasks``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.tally import median

SIDES = ("this", "against")
"""The measured checkout, and the one that it is compared with."""

_RECAP = re.compile(r"^\S+ +: ok=(\d+) +changed=(\d+) .*?skipped=(\d+)", re.M)
# the line that profile_tasks writes when a task starts, whether or not the task is shown
_TIMES = r"^\w+ \d\d \w+ \d{4} .*\(\d+:\d\d:\d\d\.\d{3}\) +[\d:.]+ \**"
_STARTED = re.compile(_TIMES, re.M)
# before its table of tasks; ansible-core 2.16's release of it writes no headline
_TABLE = re.compile(rf"(?:^TASKS RECAP \**\s*\n)?{_TIMES} *\n=+ *$", re.M)
# dashes fill the line; the shortest has none left
_TASK = re.compile(r"^(\S.*?) -* ?(\d+\.\d\d)s$", re.M)
_HEADER = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*)\] \**")

_HEAD = (
    *("measured", "checkout", "runs", "seconds", "(min-max)", "control CPU s"),
    *("started", "ok", "changed", "skipped", "ratio", "(pair by pair)"),
)


class UnreadableOutput(ValueError):
    """The output of a playbook has no recap, of hosts or of tasks."""


@dataclass(frozen=True)
class Counts:
    """What a playbook's output says about its tasks."""

    started: int
    """Task headers: a task counts once for all hosts, once for each inclusion, also if skipped."""
    ok: int
    """From PLAY RECAP, over all hosts: tasks that ran on a host, those that changed it included."""
    changed: int
    skipped: int
    tasks: tuple[tuple[str, float], ...]
    """Name, and seconds until the next one started; a name comes once for each inclusion."""


@dataclass(frozen=True)
class Run:
    """One run of a program; ``counts`` is None where it is no playbook."""

    seconds: float
    cpu_seconds: float
    """Processor time of the control node's processes, ssh included; none of the hosts'."""
    counts: Counts | None


Rounds = Sequence[Sequence[Run]]
"""The runs of one measurement, round by round."""


@dataclass(frozen=True)
class Costly:
    """All tasks of one name: how many there are in a run, and their seconds together (medians)."""

    name: str
    times: float
    seconds: float


def read_counts(output: str) -> Counts:
    """Read the output of a playbook that ended well. Raises UnreadableOutput."""
    before, after = _split(output)
    hosts = [tuple(map(int, match)) for match in _RECAP.findall(output)]
    if not after:
        raise UnreadableOutput("the callback ansible.posix.profile_tasks wrote no table of tasks")
    if not hosts:
        raise UnreadableOutput("there is no host in PLAY RECAP")
    ok, changed, skipped = (sum(column) for column in zip(*hosts, strict=True))
    tasks = tuple((name, float(seconds)) for name, seconds in _TASK.findall(after))
    return Counts(len(_STARTED.findall(before)), ok, changed, skipped, tasks)


def _split(output: str) -> tuple[str, str]:
    """The output before profile_tasks' table, and the table, empty where there is none."""
    table = _TABLE.search(output)
    return (output[: table.start()], output[table.end() :]) if table else (output, "")


def find_changed(output: str) -> list[str]:
    """The names of the tasks that changed something, in their order."""
    names: list[str] = []
    name = ""
    for line in output.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
        elif line.startswith("changed: [") and name not in names:
            names.append(name)
    return names


def cut_end(output: str, lines: int = 40) -> str:
    """The last lines of a playbook's output, without what profile_tasks adds to it."""
    shown = _STARTED.sub("", _split(output)[0]).splitlines()
    return "\n".join([line for line in shown if line][-lines:])


def rank_tasks(runs: Sequence[Run], most: int = 10) -> list[Costly]:
    """The names whose tasks took the longest, summed over each run."""
    counted = [run.counts for run in runs if run.counts]
    times = [Counter(name for name, _ in counts.tasks) for counts in counted]
    sums = [_sum_by_name(counts.tasks) for counts in counted]
    costly = [
        Costly(
            name,
            median([of_run[name] for of_run in times]),
            round(median([of_run.get(name, 0.0) for of_run in sums]), 2),
        )
        for name in dict.fromkeys(name for of_run in sums for name in of_run)
    ]
    return sorted(costly, key=lambda task: -task.seconds)[:most]


def _sum_by_name(tasks: Sequence[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, seconds in tasks:
        sums[name] = sums.get(name, 0.0) + seconds
    return sums


def pair_ratios(ours: Rounds, theirs: Rounds) -> list[float]:
    """This checkout's seconds by the other's, for each round that both have."""
    return [
        median([run.seconds for run in mine]) / median([run.seconds for run in other])
        for mine, other in zip(ours, theirs, strict=False)
    ]


def summarize(measured: Mapping[str, Mapping[str, Rounds]]) -> dict[str, dict[str, object]]:
    """``<measurement>.<side>``: medians and spread, for JSON; with both sides, their ratio."""
    summary: dict[str, dict[str, object]] = {}
    for name, sides in measured.items():
        row: dict[str, object] = {
            side: _summarize_side(rounds) for side, rounds in sides.items() if any(rounds)
        }
        if len(row) == len(SIDES):
            ours, theirs = (sides[side] for side in SIDES)
            row["ratio"] = round(_median_seconds(ours) / _median_seconds(theirs), 3)
            row["ratio_by_pair"] = [round(ratio, 3) for ratio in pair_ratios(ours, theirs)]
        if row:
            summary[name] = row
    return summary


def _summarize_side(rounds: Rounds) -> dict[str, object]:
    runs = [run for runs in rounds for run in runs]
    seconds = [run.seconds for run in runs]
    row: dict[str, object] = {
        "rounds": [[round(run.seconds, 2) for run in runs] for runs in rounds],
        "seconds": round(median(seconds), 2),
        "seconds_spread": [round(min(seconds), 2), round(max(seconds), 2)],
        "cpu_seconds": round(median([run.cpu_seconds for run in runs]), 2),
    }
    counted = [run.counts for run in runs if run.counts]
    if counted:
        for field in ("started", "ok", "changed", "skipped"):
            row[field] = median([getattr(counts, field) for counts in counted])
        row["costliest"] = [
            {"name": task.name, "times": task.times, "seconds": task.seconds}
            for task in rank_tasks(runs)
        ]
    return row


def _median_seconds(rounds: Rounds) -> float:
    return median([run.seconds for runs in rounds for run in runs])


def result_lines(measured: Mapping[str, Mapping[str, Rounds]]) -> list[list[str]]:
    """The results as the cells of a table, its head first; ratios stand beside this checkout."""
    lines = [list(_HEAD)]
    for name, sides in measured.items():
        ratios = ["", ""]
        if all(any(sides.get(side, ())) for side in SIDES):
            ours, theirs = (sides[side] for side in SIDES)
            ratios = [
                f"{_median_seconds(ours) / _median_seconds(theirs):.2f}",
                " ".join(f"{ratio:.2f}" for ratio in pair_ratios(ours, theirs)),
            ]
        for side in SIDES:
            runs = [run for runs in sides.get(side, ()) for run in runs]
            if runs:
                lines.append(
                    [name, side, *_cells(runs), *(ratios if side == SIDES[0] else ["", ""])]
                )
    return lines


def _cells(runs: Sequence[Run]) -> list[str]:
    seconds = [run.seconds for run in runs]
    counted = [run.counts for run in runs if run.counts]
    return [
        str(len(runs)),
        f"{median(seconds):.1f}",
        f"{min(seconds):.1f}-{max(seconds):.1f}",
        f"{median([run.cpu_seconds for run in runs]):.1f}",
        *(
            f"{median([getattr(counts, field) for counts in counted]):g}" if counted else ""
            for field in ("started", "ok", "changed", "skipped")
        ),
    ]


def task_lines(measured: Mapping[str, Mapping[str, Rounds]]) -> list[list[str]]:
    """The most expensive tasks of each measurement as the cells of a table, its head first."""
    lines = [["measured", "task", "checkout", "times", "seconds"]]
    for name, sides in measured.items():
        for side, rounds in sides.items():
            for task in rank_tasks([run for runs in rounds for run in runs]):
                lines.append([name, task.name, side, f"{task.times:g}", f"{task.seconds:.2f}"])
    return lines
