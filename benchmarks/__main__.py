"""``python -m benchmarks``: see ``--help``, and docs/benchmarks.md."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from benchmarks.peers import PEERS, Peer
from benchmarks.report import summarize_throughput, throughput_table
from benchmarks.testbed import Testbed
from benchmarks.throughput import Plan, Sample, measure

_PAYLOAD_BYTES = 256


def _split_peers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in PEERS:
            raise click.BadParameter(f"'{name}' is none of {', '.join(PEERS)}")
    return names


def _split_numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    numbers = value.split(",")
    for number in numbers:
        if not number.isdecimal() or not 1 <= int(number) <= 1000:
            raise click.BadParameter(f"'{number}' is not a number from 1 to 1000")
    return [int(number) for number in numbers]


@click.command()
@click.option("--peers", default=",".join(PEERS), show_default=True, callback=_split_peers)
@click.option("--connections", default="1,16,64,256", show_default=True, callback=_split_numbers)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=4.0, show_default=True)
@click.option("--warm-up", type=click.FloatRange(0, 60), default=1.0, show_default=True)
@click.option("--only", type=click.Choice(["throughput", "faults"]), help="One part alone.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/var/tmp",  # noqa: S108 - a folder of its own is made there
    show_default=True,
    help="A folder on a real disk, for the store.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False))
def main(
    peers: list[str],
    connections: list[int],
    rounds: int,
    seconds: float,
    warm_up: float,
    only: str | None,
    folder: Path,
    out: Path | None,
) -> None:
    """Compare relays side by side."""
    signal.signal(signal.SIGTERM, _interrupt)
    chosen: list[Peer] = []
    for name in peers:
        if PEERS[name].is_available():
            chosen.append(PEERS[name])
        else:
            click.echo(f"{name} is not installed, so it is left out", err=True)
    with tempfile.TemporaryDirectory(prefix="sealrelay-bench-", dir=folder) as temporary:
        testbed = Testbed(Path(temporary) / "testbed")
        plan = Plan(
            connections=connections,
            rounds=rounds,
            warm_up=warm_up,
            seconds=seconds,
            payload_bytes=_PAYLOAD_BYTES,
        )
        samples = measure(testbed, chosen, plan, _tell_sample)
    summary = summarize_throughput(samples)
    click.echo(throughput_table(summary))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "latest.json").write_text(json.dumps({"throughput": summary}, indent=2) + "\n")


def _tell_sample(sample: Sample) -> None:
    click.echo(
        f"{sample.connections:>4} connections  {sample.peer:<10} {sample.rps:>7.0f} messages/s  "
        f"p50 {sample.p50_ms:.2f} ms  p99 {sample.p99_ms:.1f} ms  failed {sample.failed}",
        err=True,
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(130)


if __name__ == "__main__":
    main()
