"""``sealrelay send``: seal messages and have them stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from sealrelay.cli.options import FILE
from sealrelay.client import Client, Receipt
from sealrelay.errors import InputFileError, SealrelayError
from sealrelay.identity import NAME

CLIENTS = Path("/etc/sealrelay/clients")


@click.command()
@click.option(
    "--client", "name", metavar="NAME", help=f"The client; its files lie in {CLIENTS}/NAME."
)
@click.option(
    "--config",
    "path",
    type=FILE,
    metavar="FILE",
    help="The client's settings file, where it lies elsewhere.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Send each message so many times, sealed anew each time.",
)
@click.option(
    "--file",
    "file",
    type=FILE,
    metavar="FILE",
    help="Send the contents of a file as one message.",
)
@click.option("-v", "--verbose", is_flag=True, help="Tell message ids, servers and failed tries.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs.")
@click.argument("texts", nargs=-1, metavar="[TEXT...|-]")
def send(
    name: str | None,
    path: Path | None,
    count: int,
    file: Path | None,
    verbose: bool,
    as_json: bool,
    texts: tuple[str, ...],
) -> None:
    """Seal messages and send them until each is stored.

    Each TEXT is one message; - stands for standard input, one message a line. Stops at the first
    message that is not accepted, and says how many were.
    """
    if not texts and file is None:
        raise click.UsageError("Nothing to send: give TEXT, - for standard input, or --file FILE.")
    client = Client.from_file(
        find_settings(name, path),
        on_retry=lambda reason: click.echo(f"sealrelay: {reason}", err=True) if verbose else None,
    )
    accepted = 0
    with client:
        try:
            for message in _messages(texts, file):
                for _ in range(count):
                    _report(client.name, client.send(message), verbose, as_json)
                    accepted += 1
        except SealrelayError as error:
            raise type(error)(f"[{client.name}] {error} ({accepted} accepted before)") from None


def find_settings(name: str | None, path: Path | None) -> Path:
    """The settings file of the client that a user named. Raises UsageError and BadParameter."""
    if (name is None) == (path is None):
        raise click.UsageError("Say who sends: --client NAME, or --config FILE.")
    if path is not None:
        return path
    assert name is not None
    if not NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r} is not a client's name.", param_hint="--client")
    return CLIENTS / name / "client.toml"


def _messages(texts: tuple[str, ...], file: Path | None) -> Iterator[bytes]:
    if file is not None:
        try:
            yield file.read_bytes()
        except OSError as error:
            raise InputFileError(f"{file}: {error.strerror}") from None
    for text in texts:
        if text == "-":
            yield from (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
        else:
            yield text.encode("utf-8", errors="surrogateescape")


def _report(name: str, receipt: Receipt, verbose: bool, as_json: bool) -> None:
    if as_json:
        line = {"client": name, "result": "ok", **asdict(receipt)}
        click.echo(msgspec.json.encode(line))
        return
    more = ""
    if verbose:
        again = ", stored already" if receipt.replayed else ""
        more = f" {receipt.message_id} by {receipt.served_by}{again}"
    click.echo(f"[{name}] Success: {{'result': 'ok'}}{more}")
