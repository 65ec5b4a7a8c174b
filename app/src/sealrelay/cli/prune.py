"""``sealrelay prune``: removes messages whose retention is over, while servers go on storing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import click

from sealrelay.cli.store import become_owner, store_config_option
from sealrelay.config import ServerSettings, load_settings
from sealrelay.errors import Outdated, Unreachable
from sealrelay.store import (
    LONGEST,
    PAUSE,
    SchemaOutdated,
    SqlStore,
    StoreError,
    insist,
    open_store,
)

_SMALLEST_BATCH = 100
"""Messages; what few of them take is the commit, and many small ones would never keep up."""


@click.command()
@store_config_option
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=10_000),
    default=500,
    show_default=True,
    help="Remove at most so many messages in one transaction. Fewer, where they take long.",
)
@click.option("--dry-run", is_flag=True, help="Only tell how many would be removed.")
def prune(path: Path, batch: int, dry_run: bool) -> None:
    """Remove messages that were received longer ago than the retention.

    Servers go on storing meanwhile. No token of a removed message is accepted again: its own time
    (token_ttl) was over before.
    """
    settings = load_settings(path, ServerSettings)
    before_ms = end_of_retention(settings, time.time())
    told = f"received before {datetime.fromtimestamp(before_ms / 1000, timezone.utc):%FT%TZ}"
    removed = 0
    try:
        store = open_store(settings.store, read_only=dry_run)
        become_owner(store)
        insist(store.check_schema)
        if dry_run:
            click.echo(f"{store.count_before(before_ms)} messages {told} would be removed.")
        else:
            for number in _remove(store, before_ms, batch):
                removed += number
            click.echo(f"Removed {removed} messages {told}.")
        store.close()
    except SchemaOutdated as error:
        raise Outdated(f"{path}: {error}") from None
    except StoreError as error:
        raise Unreachable(f"store of {path}: {error} ({removed} messages removed before)") from None


def end_of_retention(settings: ServerSettings, now: float) -> int:
    """What was received before this time may be removed; ms since the epoch, ``now`` in s.

    A token was sealed at most MAX_CLOCK_SKEW after its message was received, and is accepted for
    ``token_ttl`` from then on. Both are shorter than ``retention``: see config.
    """
    return int((now - settings.retention) * 1000)


def _remove(store: SqlStore, before_ms: int, largest: int) -> Iterator[int]:
    """Remove messages in short transactions; tells how many each time. Raises StoreError."""
    smallest = size = min(_SMALLEST_BATCH, largest)
    while True:
        pruned = insist(partial(store.prune, before_ms, size))
        yield pruned.removed
        if pruned.removed < size:
            return
        if pruned.deleting > LONGEST:
            size = max(size // 2, smallest)
        elif pruned.deleting < LONGEST / 2:
            size = min(size + size // 2 + 1, largest)
        time.sleep(PAUSE * pruned.holding)
