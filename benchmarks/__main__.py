"""``python -m benchmarks``: see ``--help``, and docs/benchmarks.md."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

import click

from benchmarks import failover, throughput
from benchmarks.faults import FAULTS, remove_leftovers, why_impossible
from benchmarks.machine import describe_machine, is_in_memory
from benchmarks.options import FULL, PAYLOAD_BYTES, QUICK, RATE, Extent, folder_option
from benchmarks.page import RESULTS, update_page
from benchmarks.peers import PEERS, Peer
from benchmarks.report import (
    fault_lines,
    format_text,
    summarize_faults,
    summarize_throughput,
    summarize_timelines,
    throughput_lines,
)
from benchmarks.testbed import Testbed

_TIMELINE_STEP = 0.1
"""Seconds."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not SystemExit, which commands run within this process would catch."""


Names = tuple[str, ...] | None
Split = Callable[[click.Context, click.Parameter, str | None], Names]


def _split(choices: Iterable[str]) -> Split:
    def split(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Names:
        if value is None:
            return None
        names = tuple(value.split(","))
        for name in names:
            if name not in choices:
                raise click.BadParameter(f"'{name}' is none of {', '.join(choices)}")
        return names

    return split


def _split_numbers(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    numbers = value.split(",")
    for number in numbers:
        if not number.isdecimal() or not 1 <= int(number) <= 1000:
            raise click.BadParameter(f"'{number}' is not a number from 1 to 1000")
    return tuple(int(number) for number in numbers)


@click.command()
@click.option("--quick", is_flag=True, help="A short form, for a first impression.")
@click.option("--peers", default=",".join(PEERS), show_default=True, callback=_split(PEERS))
@click.option("--only", type=click.Choice(["throughput", "faults"]), help="One part alone.")
@click.option("--connections", callback=_split_numbers, help="Numbers of client connections.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Of throughput.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), help="Of throughput, each time.")
@click.option("--faults", callback=_split(FAULTS), help=f"Of {','.join(FAULTS)}.")
@click.option("--fault-rounds", type=click.IntRange(1, 100), help="Of faults.")
@click.option("--fault-seconds", type=click.FloatRange(1, 60), help="How long a fault lasts.")
@folder_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write latest.json and the pictures; without it, nothing is written.",
)
def main(
    *,
    quick: bool,
    peers: tuple[str, ...],
    only: str | None,
    folder: Path,
    out: Path | None,
    **changes: object,
) -> None:
    """Compare relays side by side; docs/benchmarks.md says how, and what it shows."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, _interrupt)
    remove_leftovers()
    given = {name: value for name, value in changes.items() if value is not None}
    extent = replace(QUICK if quick else FULL, **given)  # type: ignore[arg-type] # click checked
    extent = replace(extent, faults=_possible(extent.faults))
    chosen = _available(peers)
    if is_in_memory(folder):
        raise click.ClickException(f"{folder} is in memory; name a folder on a disk with --folder")
    results: dict[str, object] = {
        "machine": describe_machine(chosen, folder),
        "extent": asdict(extent),
    }
    with tempfile.TemporaryDirectory(prefix="sealrelay-bench-", dir=folder) as temporary:
        testbed = Testbed(Path(temporary) / "testbed")
        if only != "faults":
            results |= _measure_throughput(testbed, chosen, extent)
        if only != "throughput":
            results |= _try_faults(testbed, chosen, extent)
    if out is not None:
        _write(results, out)


def _measure_throughput(
    testbed: Testbed, peers: Sequence[Peer], extent: Extent
) -> dict[str, object]:
    plan = throughput.Plan(
        connections=extent.connections,
        rounds=extent.rounds,
        warm_up=extent.warm_up,
        seconds=extent.seconds,
        payload_bytes=PAYLOAD_BYTES,
    )
    summary = summarize_throughput(throughput.measure(testbed, peers, plan, _tell_sample))
    click.echo(format_text(throughput_lines(summary)) + "\n")
    return {"throughput": summary}


def _try_faults(testbed: Testbed, peers: Sequence[Peer], extent: Extent) -> dict[str, object]:
    plan = failover.Plan(
        faults=extent.faults,
        rounds=extent.fault_rounds,
        rate=RATE,
        before=extent.fault_margin,
        during=extent.fault_seconds,
        after=extent.fault_margin,
        payload_bytes=PAYLOAD_BYTES,
    )
    trials = failover.try_faults(testbed, peers, plan, _tell_trial)
    summary = summarize_faults(trials)
    click.echo(format_text(fault_lines(summary)))
    timelines = {
        "step": _TIMELINE_STEP,
        "fault_begins": plan.before,
        "fault_ends": plan.before + plan.during,
        "faults": summarize_timelines(trials, _TIMELINE_STEP, plan.seconds),
    }
    return {"faults": summary, "timelines": timelines}


def _write(results: dict[str, object], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2)
    # A list of numbers on one line: they are many.
    text = re.sub(r"\[[^][{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    (out / "latest.json").write_text(text + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no pictures: matplotlib is not installed (bin/bench has it)", err=True)
        return
    subprocess.run([sys.executable, "-m", "benchmarks.plot", str(out)], check=True)
    if out.resolve() == RESULTS:
        update_page()


def _available(names: Iterable[str]) -> list[Peer]:
    chosen = []
    for name in names:
        if PEERS[name].is_available():
            chosen.append(PEERS[name])
        else:
            click.echo(f"{name} is not installed, so it is left out", err=True)
    return chosen


def _possible(faults: Iterable[str]) -> tuple[str, ...]:
    chosen = []
    for fault in faults:
        if reason := why_impossible(fault):
            click.echo(f"{fault} is left out: {reason}", err=True)
        else:
            chosen.append(fault)
    return tuple(chosen)


def _tell_sample(sample: throughput.Sample) -> None:
    click.echo(
        f"{sample.connections:>4} connections  {sample.peer:<10} {sample.rps:>7.0f} messages/s  "
        f"p50 {sample.p50_ms:.2f} ms  p99 {sample.p99_ms:.1f} ms  failed {sample.failed}",
        err=True,
    )


def _tell_trial(trial: failover.Trial) -> None:
    fate = trial.fate
    click.echo(
        f"{trial.fault:<10} {trial.peer:<10} sent {fate.sent}  failed {fate.failed}  "
        f"lost {fate.lost}  doubled {fate.doubled}  over 250 ms {fate.over_250ms}  "
        f"worst {fate.worst_ms:.0f} ms"
        + (f"  ended frozen: {trial.fenced}" if trial.fenced else ""),
        err=True,
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted


if __name__ == "__main__":
    try:
        main()
    except Interrupted:
        sys.exit(130)
