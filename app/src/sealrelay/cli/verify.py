"""``sealrelay verify``: whether the store bears out what a load's clients were told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import msgspec

from sealrelay.cli.messages import config_option, json_option, open_text, opened
from sealrelay.cli.options import FILE
from sealrelay.errors import NotBorneOut
from sealrelay.history import read_history, read_text
from sealrelay.seal import Keyring
from sealrelay.store import SqlStore
from sealrelay.verify import Found, Verdict, compare

_SKEW = 300.0
"""Seconds by which a server's clock may be behind the load's."""
_NAMED = 5
"""Messages of one kind that are named."""


@click.command()
@click.argument("history", type=FILE, metavar="HISTORY")
@config_option
@json_option
def verify(history: Path, path: Path | None, as_json: bool) -> None:
    """Compare a HISTORY of `sealrelay load` with the store. On a server's host, as root.

    Whatever was acknowledged must be there, once; nothing else may be there but messages whose
    clients got no certain answer. Exit code 11 when it is otherwise. Run it when the load is over.
    """
    told = read_history(history)
    since = int((told.run.began - _SKEW) * 1000)
    with opened(path) as (store, keyrings):
        verdict = compare(told, _find(store, keyrings, told.run.run, since))
    click.echo(msgspec.json.encode(verdict) if as_json else _describe(verdict), nl=as_json)
    if verdict.faults:
        faults = ", ".join(f"{len(numbers)} {fault}" for fault, numbers in verdict.faults.items())
        raise NotBorneOut(f"the store does not bear out {history}: {faults}")


def _find(
    store: SqlStore, keyrings: Mapping[str, Keyring], run: str, since: int
) -> Iterator[Found]:
    for record in store.since(since):
        plaintext = open_text(record, keyrings)
        known = None if plaintext is None else read_text(plaintext)
        if known is not None and known[0] == run:
            yield Found(known[1], record.client, record.message_id.hex())


def _describe(verdict: Verdict) -> str:
    lines = [
        (verdict.sent, "messages sent"),
        (verdict.acknowledged, "acknowledged"),
        (verdict.stored_once, "  and stored once"),
        (len(verdict.lost), "  and lost"),
        (verdict.unknown_stored, "without a certain answer, and stored"),
        (verdict.unknown_absent, "without a certain answer, and not stored"),
        (verdict.refused_absent, "refused, and not stored"),
        (len(verdict.refused_stored), "refused, and stored all the same"),
        (len(verdict.doubled), "stored twice"),
        (len(verdict.never_sent), "stored, never sent"),
        (len(verdict.altered), "stored as another's, or under another id"),
    ]
    text = "".join(f"{count:>9}  {what}\n" for count, what in lines)
    for fault, numbers in verdict.faults.items():
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        text += f"{fault}: number {', '.join(map(str, numbers[:_NAMED]))}{more}\n"
    return text if verdict.faults else f"{text}The store bears out the history.\n"
