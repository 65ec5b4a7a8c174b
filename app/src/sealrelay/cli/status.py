"""``sealrelay status``: every coordinator and server of a deployment in one table."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path

import click
import msgspec
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sealrelay.cli.options import FILE
from sealrelay.config import OperatorSettings, load_settings
from sealrelay.errors import NotHealthy
from sealrelay.status import Picture, Row, State, Watch
from sealrelay.text import escape_text
from sealrelay.words import (
    CRL_SOON,
    LEAF_SOON,
    tell_age,
    tell_bytes,
    tell_milliseconds,
    tell_rate,
    tell_time_left,
)

OPERATOR = Path("/etc/sealrelay/operator/operator.toml")
_STYLES: dict[State, str] = {
    "healthy": "green",
    "slow": "yellow",
    "down": "bold red",
    "unreachable": "bold red",
    "unknown": "red",
}
_WIDTH = 160
"""Columns where the output is no terminal."""


@click.command()
@click.option(
    "--watch",
    "interval",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Look again every 2 seconds, or as often as given, until Ctrl-C.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option(
    "--config",
    "path",
    type=FILE,
    default=OPERATOR,
    show_default=True,
    metavar="FILE",
    help="The operator's settings file.",
)
def status(interval: float | None, as_json: bool, path: Path) -> None:
    """Show every coordinator and server: its state and why, rates, latencies.

    Exit code 0 when all are healthy, 10 when any is not. Rates and latencies are since each service
    was started; with --watch, from the second look on, since the look before.
    """
    watch = Watch(load_settings(path, OperatorSettings))
    picture = watch.look()
    if as_json:
        _print_json(picture)
    elif interval is None:
        _console().print(make_table(picture))
    if interval is not None:
        picture = _look_again(watch, picture, interval, as_json)
    if not picture.healthy:
        raise NotHealthy("; ".join(_say(row) for row in picture.rows if row.state != "healthy"))


def _look_again(watch: Watch, picture: Picture, interval: float, as_json: bool) -> Picture:
    """Look until Ctrl-C; returns the last picture."""
    console = _console()
    # A table that changes in place needs a terminal that can do that; else each is printed.
    in_place = not as_json and console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False, transient=False) if in_place else None
    with live or nullcontext():
        try:
            while True:
                if live is not None:
                    live.update(make_table(picture), refresh=True)
                elif not as_json:
                    console.print(make_table(picture))
                elif picture.window is not None:
                    _print_json(picture)
                time.sleep(interval)
                picture = watch.look()
        except KeyboardInterrupt:
            return picture


def _console() -> Console:
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def _print_json(picture: Picture) -> None:
    click.echo(msgspec.json.encode(picture))


def make_table(picture: Picture) -> Table:
    """The picture as a table for people."""
    window = "since the start of each" if picture.window is None else f"last {picture.window:.1f} s"
    table = Table(
        title=f"{picture.trust_domain} at {_clock(picture.at)}",
        caption=f"rates and latencies: {window}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("state")
    table.add_column("since", no_wrap=True)
    for heading in ("messages/s", "problems/s", "p50", "p99", "waiting", "store"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("last failure")
    table.add_column("certificate, CRL", no_wrap=True)
    for row in picture.rows:
        state = f"{row.state}: {escape_text(row.reason)}" if row.reason else row.state
        table.add_row(
            Text(_name(row)),
            Text(state, style=_STYLES[row.state]),
            Text(tell_age(row.since, picture.at)),
            Text(tell_rate(row.messages_per_second)),
            Text(
                tell_rate(row.problems_per_second), style="red" if row.problems_per_second else ""
            ),
            Text(tell_milliseconds(row.p50_ms)),
            Text(tell_milliseconds(row.p99_ms)),
            Text("" if row.waiting is None else str(row.waiting)),
            Text(tell_bytes(row.store_bytes)),
            Text(_failure(row, picture.at)),
            _tell_time_left(row, picture.at),
        )
    return table


def _say(row: Row) -> str:
    return f"{_name(row)} is {row.state}: {escape_text(row.reason)}"


def _name(row: Row) -> str:
    return f"{row.role.value} {escape_text(row.name) or row.url.removeprefix('https://')}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _tell_time_left(row: Row, now: float) -> Text:
    text = Text()
    for ends, soon, over in (
        (row.certificate_expires, LEAF_SOON, "expired"),
        (row.crl_next_update, CRL_SOON, "overdue"),
    ):
        if ends is not None:
            text.append(", " if text else "")
            style = "" if ends - now > soon else "bold red"
            text.append(tell_time_left(ends, now, over), style)
    return text


def _failure(row: Row, now: float) -> str:
    if not row.last_failure:
        return ""
    return f"{escape_text(row.last_failure)}, {tell_age(row.last_failure_at, now)} ago"
