"""``python -m benchmarks``: see ``--help``, and docs/benchmarks.md."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

import click

from benchmarks import failover, throughput
from benchmarks.faults import FAULTS, remove_leftovers, why_impossible
from benchmarks.peers import PEERS, Peer
from benchmarks.report import (
    faults_table,
    summarize_faults,
    summarize_throughput,
    throughput_table,
)
from benchmarks.testbed import Testbed

_PAYLOAD_BYTES = 256

Split = Callable[[click.Context, click.Parameter, str], list[str]]


def _split(choices: Iterable[str]) -> Split:
    def split(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
        names = value.split(",")
        for name in names:
            if name not in choices:
                raise click.BadParameter(f"'{name}' is none of {', '.join(choices)}")
        return names

    return split


def _split_numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    numbers = value.split(",")
    for number in numbers:
        if not number.isdecimal() or not 1 <= int(number) <= 1000:
            raise click.BadParameter(f"'{number}' is not a number from 1 to 1000")
    return [int(number) for number in numbers]


@click.command()
@click.option("--peers", default=",".join(PEERS), show_default=True, callback=_split(PEERS))
@click.option("--only", type=click.Choice(["throughput", "faults"]), help="One part alone.")
@click.option("--connections", default="1,16,64,256", show_default=True, callback=_split_numbers)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=4.0, show_default=True)
@click.option("--warm-up", type=click.FloatRange(0, 60), default=1.0, show_default=True)
@click.option("--faults", default=",".join(FAULTS), show_default=True, callback=_split(FAULTS))
@click.option("--fault-rounds", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--fault-seconds", type=click.FloatRange(1, 60), default=8.0, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/var/tmp",  # noqa: S108 - a folder of its own is made there
    show_default=True,
    help="A folder on a real disk, for the store.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False))
def main(
    *,
    peers: list[str],
    only: str | None,
    connections: list[int],
    rounds: int,
    seconds: float,
    warm_up: float,
    faults: list[str],
    fault_rounds: int,
    fault_seconds: float,
    folder: Path,
    out: Path | None,
) -> None:
    """Compare relays side by side."""
    signal.signal(signal.SIGTERM, _interrupt)
    remove_leftovers()
    chosen = _available(peers)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="sealrelay-bench-", dir=folder) as temporary:
        testbed = Testbed(Path(temporary) / "testbed")
        if only != "faults":
            plan = throughput.Plan(
                connections=connections,
                rounds=rounds,
                warm_up=warm_up,
                seconds=seconds,
                payload_bytes=_PAYLOAD_BYTES,
            )
            samples = throughput.measure(testbed, chosen, plan, _tell_sample)
            results["throughput"] = summary = summarize_throughput(samples)
            click.echo(throughput_table(summary))
        if only != "throughput":
            trials = failover.try_faults(
                testbed,
                chosen,
                failover.Plan(
                    faults=_possible(faults),
                    rounds=fault_rounds,
                    rate=100.0,
                    before=3.0,
                    during=fault_seconds,
                    after=3.0,
                    payload_bytes=_PAYLOAD_BYTES,
                ),
                _tell_trial,
            )
            results["faults"] = summary = summarize_faults(trials)
            click.echo(faults_table(summary))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "latest.json").write_text(json.dumps(results, indent=2) + "\n")


def _available(names: Iterable[str]) -> list[Peer]:
    chosen = []
    for name in names:
        if PEERS[name].is_available():
            chosen.append(PEERS[name])
        else:
            click.echo(f"{name} is not installed, so it is left out", err=True)
    return chosen


def _possible(faults: Iterable[str]) -> list[str]:
    chosen = []
    for fault in faults:
        if reason := why_impossible(fault):
            click.echo(f"{fault} is left out: {reason}", err=True)
        else:
            chosen.append(fault)
    return chosen


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
    sys.exit(130)


if __name__ == "__main__":
    main()
