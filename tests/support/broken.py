"""``python -m tests.support.broken FLAW SERVICE --config FILE``: a service with one flaw built in.

What proves that nothing is lost or doubled must see it when something is: each flaw is one that a
plausible mistake would make, or somebody hostile. Needs nothing but the app, so that it also runs
by itself on a host.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from msgspec.structs import replace

from sealrelay import cli, serving
from sealrelay.store.records import Record, Stored
from sealrelay.wire import Outcome


def acknowledge_before_commit() -> None:
    """Messages are acknowledged as soon as they are there, and committed a little later."""
    from sealrelay.store.group import GroupCommit

    commit = GroupCommit.add

    def add(self: GroupCommit, records: Sequence[Record]) -> list[Stored]:
        gevent.spawn_later(0.3, commit, self, records)
        return [Stored(replayed=False, server=record.server) for record in records]

    GroupCommit.add = add  # type: ignore[method-assign]


def forget_ids() -> None:
    """Messages are stored under ids that have nothing to do with their tokens: a repeat is news."""
    _store_under(lambda record: os.urandom(32))


def hedge_without_id() -> None:
    """Each server gives ids of its own, so that what is offered to two of them is news to both."""
    _store_under(lambda record: hashlib.sha256((record.server + record.token).encode()).digest())


def _store_under(find_id: Callable[[Record], bytes]) -> None:
    from sealrelay.store.sql import SqlStore

    store = SqlStore.add

    def add(self: SqlStore, records: Sequence[Record]) -> list[Stored]:
        return store(self, [replace(record, message_id=find_id(record)) for record in records])

    SqlStore.add = add  # type: ignore[method-assign]


def hand_nothing_on() -> None:
    """A coordinator acknowledges messages, and that is all it does."""
    from sealrelay.dispatch import Message, Relay

    def deliver(self: Relay, message: Message) -> Outcome:
        return Outcome(200, server="server1")

    Relay.deliver = deliver  # type: ignore[method-assign]


FLAWS: dict[str, Callable[[], None]] = {
    "acknowledge-before-commit": acknowledge_before_commit,
    "forget-ids": forget_ids,
    "hand-nothing-on": hand_nothing_on,
    "hedge-without-id": hedge_without_id,
}


def main() -> None:
    build_in = FLAWS[sys.argv.pop(1)]
    load = serving._Service.load

    def load_flawed(self: serving._Service) -> Callable[..., Any]:
        # in the worker, after gevent has patched what the store imports
        build_in()
        return load(self)

    serving._Service.load = load_flawed  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
