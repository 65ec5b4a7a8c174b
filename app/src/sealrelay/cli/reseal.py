"""``sealrelay reseal``: has stored messages sealed with the newest keys, and forgets older ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import click
import msgspec

from sealrelay.cli.store import become_owner, store_config_option, would_become_owner
from sealrelay.config import ServerSettings, load_settings
from sealrelay.errors import ConfigError, Outdated, SealrelayError, Unreachable
from sealrelay.keyrings import ClientKeys, forget_keys, read_folder, retired_file
from sealrelay.reseal import Resealer
from sealrelay.seal import MAX_CLOCK_SKEW
from sealrelay.store import SchemaOutdated, StoreError, insist, open_store

_REPORT_EVERY = 5.0
"""Seconds between two lines of progress."""
_SETTLED = 5.0
"""Seconds after which what a server opened with a key, before it was retired, is stored or given
up: coordinators wait for 2."""


@click.command()
@store_config_option
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=10_000),
    default=200,
    show_default=True,
    help="Replace at most so many in one transaction. Fewer, where they take long.",
)
@click.option(
    "--forget",
    is_flag=True,
    help="Then remove retired keys that no stored message needs any more. Only when the servers "
    "of this host run without them: see `sealrelay probe --reloaded`.",
)
def reseal(path: Path, batch: int, forget: bool) -> None:
    """Seal stored messages anew that are sealed with superseded keys.

    With their clients' newest keys. Ids and times stay as they are. Servers go on storing
    meanwhile. It may be stopped at any time, and run again.
    """
    settings = load_settings(path, ServerSettings)
    folder = Path(settings.keyrings)
    clients = read_folder(folder)
    if forget:
        _wait_until_settled(folder, clients)

    def work() -> list[str]:
        return _reseal(path, settings, clients, batch)

    needed = _run_as_owner(settings, work)
    if forget:
        _forget(folder, clients, needed)


def _reseal(
    path: Path, settings: ServerSettings, clients: Mapping[str, ClientKeys], batch: int
) -> list[str]:
    """Reseal, and tell of it. Returns the clients of which some messages had to be left alone."""
    resealer: Resealer | None = None
    try:
        writer = open_store(settings.store)
        become_owner(writer)
        insist(writer.check_schema)
        # Where readers don't keep writers out, and only there, it is better not to be a writer.
        reader = writer if writer.file is None else open_store(settings.store, read_only=True)
        total = insist(reader.count)
        resealer = Resealer(reader, writer, clients, batch)
        # What comes later is sealed with a key that stays. Clocks may be fast, or were set back.
        newest = insist(lambda: list(reader.newest(limit=1)))
        until = max(record.received_at for record in newest) if newest else 0
        until = max(until, int((time.time() + MAX_CLOCK_SKEW) * 1000))
        resealer.run(until, _make_report(resealer, total))
        writer.close()
        reader.close()
    except SchemaOutdated as error:
        raise Outdated(f"{path}: {error}") from None
    except StoreError as error:
        done = resealer.resealed if resealer else 0
        raise Unreachable(f"store of {path}: {error} ({done} messages resealed before)") from None
    click.echo(f"Resealed {resealer.resealed} messages of {resealer.looked_at}.")
    for client, number in sorted(resealer.left.items()):
        click.echo(
            f"{number} messages of {client} stay as they are: no key of {client} here opens them, "
            f"or none is in use; its retired keys are kept."
        )
    return sorted(resealer.left)


def _make_report(resealer: Resealer, total: int) -> Callable[[], None]:
    due = time.monotonic() + _REPORT_EVERY

    def report() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _REPORT_EVERY
            click.echo(
                f"{resealer.looked_at} of some {total} messages looked at, "
                f"{resealer.resealed} resealed",
                err=True,
            )

    return report


def _run_as_owner(settings: ServerSettings, work: Callable[[], list[str]]) -> list[str]:
    """Do the ``work`` as the owner of the store's file; root's own rights come back after it."""
    try:
        store = open_store(settings.store)
    except StoreError as error:
        raise ConfigError(str(error)) from None
    if not would_become_owner(store):
        return work()
    answer, question = os.pipe()
    child = os.fork()  # since whoever gives root's rights away has no way back
    if child == 0:
        os.close(answer)
        with os.fdopen(question, "wb") as file:
            file.write(msgspec.json.encode(work()))
        sys.exit(0)
    os.close(question)
    with os.fdopen(answer, "rb") as file:
        text = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise SealrelayError(f"resealing was ended by signal {-code}; run it again")
    if code > 0:
        sys.exit(code)  # it has said why
    return msgspec.json.decode(text, type=list[str])


def _wait_until_settled(folder: Path, clients: Mapping[str, ClientKeys]) -> None:
    changed = [
        path.stat().st_mtime
        for client, keys in clients.items()
        if keys.retired
        for path in (folder / f"{client}.keys", retired_file(folder / f"{client}.keys"))
        if path.exists()
    ]
    if changed:
        time.sleep(min(max(max(changed) + _SETTLED - time.time(), 0.0), _SETTLED))


def _forget(folder: Path, clients: Mapping[str, ClientKeys], needed: Collection[str]) -> None:
    forgotten = 0
    for client, keys in clients.items():
        if keys.retired and client not in needed:
            forgotten += forget_keys(folder / f"{client}.keys", keys.retired)
    click.echo(f"Forgot {forgotten} keys.")
