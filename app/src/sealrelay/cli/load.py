"""``sealrelay load``: messages at a rate, and a history of what became of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from sealrelay.cli.options import FILE
from sealrelay.cli.send import find_settings
from sealrelay.errors import InputFileError, Unreachable
from sealrelay.load import Load, Plan, Tally

_LARGEST = 1_000_000


class _Sizes(click.ParamType):  # type: ignore[type-arg] # no arguments before click 8.2
    """``256``, or ``100-2000``."""

    name = "bytes"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        first, dash, last = str(value).partition("-")
        try:
            sizes = int(first), int(last if dash else first)
        except ValueError:
            self.fail(f"{value!r} is neither a number of bytes nor two with - between.", param, ctx)
        if not 1 <= sizes[0] <= sizes[1] <= _LARGEST:
            self.fail(f"{value!r} is not from 1 to {_LARGEST} bytes, smaller first.", param, ctx)
        return sizes


@click.command()
@click.argument("history", type=click.Path(path_type=Path, dir_okay=False), metavar="HISTORY")
@click.option("--client", "names", multiple=True, metavar="NAME", help="A client; repeat for more.")
@click.option(
    "--config",
    "paths",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A client's settings file, where it lies elsewhere; repeat for more.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 10_000),
    default=100.0,
    show_default=True,
    help="Messages a second.",
)
@click.option(
    "--to-rate",
    type=click.FloatRange(0.1, 10_000),
    help="Messages a second in the end; the rate changes evenly.  [default: as --rate]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 7 * 86_400),
    default=10.0,
    show_default=True,
    help="How long.",
)
@click.option(
    "--size",
    "sizes",
    type=_Sizes(),
    default="256",
    show_default=True,
    help="Bytes in a message, or from-to.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1000),
    default=32,
    show_default=True,
    help="Messages under way at once, at most; others wait, and their time counts.",
)
@click.option("-q", "--quiet", is_flag=True, help="No line for each second.")
def load(
    history: Path,
    names: tuple[str, ...],
    paths: tuple[Path, ...],
    rate: float,
    to_rate: float | None,
    seconds: float,
    sizes: tuple[int, int],
    connections: int,
    quiet: bool,
) -> None:
    """Send messages at a rate, and write down in HISTORY what becomes of each.

    A message is due at its time whatever became of those before, and its latency counts from then.
    HISTORY is a new file of JSON lines, for `sealrelay verify`. Ctrl-C ends it early: what is under
    way is waited for. Exit code 3 when a message was not acknowledged.
    """
    files = [*(find_settings(name, None) for name in names), *paths]
    if not files:
        raise click.UsageError("Say who sends: --client NAME, or --config FILE.")
    plan = Plan(rate, to_rate or rate, seconds, sizes, connections)
    if not plan.messages:
        raise click.UsageError("Not one message is due in this time at this rate.")
    run = Load(plan, files, history)
    try:
        with _stopped_by_signals(run):
            tally = run.run(lambda passed, tally: None if quiet else _tell(passed, tally))
    except FileExistsError:
        raise InputFileError(f"{history}: is there already; name a new file") from None
    except OSError as error:
        raise InputFileError(f"{history}: {error.strerror}") from None
    click.echo(
        f"{tally.due} messages: {tally.acknowledged} acknowledged, {tally.refused} refused, "
        f"{tally.unknown} without an answer, {tally.again} more tries; worst "
        f"{tally.worst * 1000:.0f} ms"
    )
    if tally.acknowledged < tally.due:
        raise Unreachable(
            f"{tally.due - tally.acknowledged} of {tally.due} messages were not acknowledged; "
            f"the last: {tally.last_detail}"
        )


@contextmanager
def _stopped_by_signals(run: Load) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        run.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(seconds: float, tally: Tally) -> None:
    click.echo(
        f"{seconds:.0f} s: {tally.due} due, {tally.acknowledged} acknowledged, {tally.refused} "
        f"refused, {tally.unknown} without an answer, {tally.under_way} under way; worst "
        f"{tally.worst_lately * 1000:.0f} ms",
        err=True,
    )
