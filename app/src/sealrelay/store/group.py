"""Group commit: what waits while one transaction is synced to disk forms the next one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import gevent
from gevent import get_hub
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from sealrelay.store.records import Record, Stored
from sealrelay.store.sql import SqlStore

_log = logging.getLogger("sealrelay.store")

T = TypeVar("T")

_LATE = 0.03
"""Seconds of waiting for the store between two looks at whether a stopped process is in the way:
many times what a commit takes, and little against the 300 ms that a frozen server may cost."""


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _attempt(query: Callable[[SqlStore], T], store: SqlStore) -> T | _Failure:
    # The thread pool would print a stack trace of whatever is raised here, however expected.
    try:
        return query(store)
    except Exception as error:  # noqa: BLE001 - raised again by those who wait for it
        return _Failure(error)


class GroupCommit:
    """The one writer of a server process.

    The database is used from one operating system thread of its own, so that a sync to disk blocks
    no greenlet; each transaction takes all that waits, up to ``max_records``.
    """

    def __init__(
        self,
        store: SqlStore,
        note_commit: Callable[[int, float], None] = lambda _records, _seconds: None,
        max_records: int = 1000,
    ) -> None:
        """``note_commit`` is told of each commit: how many records, and how many seconds."""
        self._store = store
        self._note_commit = note_commit
        self._max_records = max_records
        self._waiting: list[tuple[Sequence[Record], AsyncResult[list[Stored]]]] = []
        self._writing = False
        self._thread = ThreadPool(1)
        self._running = 0
        self._alarm: Any = None

    def add(self, records: Sequence[Record]) -> list[Stored]:
        """Store records together with whatever else waits; returns when they are on disk.

        Raises StoreFull or StoreError; then none of ``records`` was added.
        """
        answer: AsyncResult[list[Stored]] = AsyncResult()
        self._waiting.append((records, answer))
        if not self._writing:
            self._writing = True
            gevent.spawn(self._write)
        stored = answer.get()
        assert stored is not None
        return stored

    def run(self, query: Callable[[SqlStore], T]) -> T:
        """Run a query on the store in the writer's thread. Raises what it raises."""
        with self._watched():
            outcome: T | _Failure = self._thread.apply(_attempt, (query, self._store))
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if not self._running:
            # A new one each time: one that was stopped goes on with what was left of its time.
            self._alarm = get_hub().loop.timer(_LATE, _LATE)
            self._alarm.start(self._end_stopped_writer)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._alarm.close()

    def _end_stopped_writer(self) -> None:
        # Called by the event loop itself, so it must not wait for anything.
        try:
            ended = self._store.end_stopped_writer()
        except PermissionError:
            self._alarm.stop()
            _log.error("A stopped process of another user keeps the store: continue or end it")
            return
        except OSError as error:  # no descriptor left, say; there is another look soon
            _log.error("Looking for who keeps the store: %s", error.strerror)
            return
        if ended is not None:
            _log.warning("Ended process %d, which was stopped while it kept the store", ended)

    def _write(self) -> None:
        try:
            while self._waiting:
                self._commit(self._take())
        finally:
            self._writing = False

    def _take(self) -> list[tuple[Sequence[Record], AsyncResult[list[Stored]]]]:
        taken, records = 0, 0
        while taken < len(self._waiting) and (
            taken == 0 or records + len(self._waiting[taken][0]) <= self._max_records
        ):
            records += len(self._waiting[taken][0])
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return group

    def _commit(self, group: list[tuple[Sequence[Record], AsyncResult[list[Stored]]]]) -> None:
        try:
            everything = [record for records, _ in group for record in records]
            began = time.monotonic()
            outcome = self.run(lambda store: store.add(everything))
            self._note_commit(len(everything), time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - handed to those who wait, whatever it is
            for _, answer in group:
                answer.set_exception(error)
            return
        rest = iter(outcome)
        for records, answer in group:
            answer.set([next(rest) for _ in records])
