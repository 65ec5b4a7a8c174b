"""What is known of each server beside its health: since when, why, and how it failed last.

The relay tells an observer what happens. Each worker process has its own, and its own opinion of
the servers; ``merge_reports`` makes one picture of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec

from sealrelay import metrics
from sealrelay.dispatch.decisions import Attempt, Dispatch, Health
from sealrelay.processes import share_report
from sealrelay.wire import HealthAnswer

_FIGURES = {Health.DOWN: 0, Health.SLOW: 1, Health.HEALTHY: 2}

_KEPT = 256
"""Changes of each server that a worker remembers: a minute of one that comes and goes with every
probe."""

_KEPT_FOR = 600.0
"""Seconds, so that reports are short again once all is well."""


class Change(msgspec.Struct):
    """A worker thought otherwise of a server from a time on."""

    at: float
    was: Health
    state: Health
    reason: str
    """Why it isn't healthy."""


class ServerReport(msgspec.Struct):
    """One server as one worker sees it, or as all do. Times: seconds since the epoch."""

    name: str
    url: str
    state: Health = Health.HEALTHY
    reason: str = ""
    """Why it isn't healthy."""
    since: float = 0.0
    """When the state became what it is."""
    last_failure: str = ""
    last_failure_at: float = 0.0
    lanes: int = 0
    busy_lanes: int = 0
    """Of the lanes, those with a batch that is not answered yet."""
    told: HealthAnswer | None = None
    """What it said of itself when it was last probed."""
    changes: list[Change] = []
    """Of the state, oldest first: those of the last ten minutes, and no more than 256 of a worker.
    A log line may be dropped on its way to the journal; what stands here is not."""


class Report(msgspec.Struct):
    """What ``GET /api/status`` answers, or one worker's share of it."""

    name: str
    started: float
    """When the service was started, in seconds since the epoch."""
    workers: int
    waiting: int
    """Messages that wait for a server."""
    servers: list[ServerReport]


class Observer:
    """Counts what the dispatch of one worker does, and remembers what it thinks of servers."""

    def __init__(
        self,
        name: str,
        urls: Mapping[str, str],
        dispatch: Dispatch,
        limit: int,
        started: float,
        lanes: int,
    ) -> None:
        """``urls`` by server; ``limit``: messages that may wait; ``started``: of the service;
        ``lanes`` a server."""
        self._dispatch = dispatch
        self._limit = limit
        now = time.time()
        self._servers = {
            server: ServerReport(server, url, since=now, lanes=lanes)
            for server, url in urls.items()
        }
        self._report = Report(name, started, 1, 0, list(self._servers.values()))
        self._shared = b""

    def start(self) -> None:
        """Begin to publish."""
        for server in self._servers:
            for result in ("ok", "failed", "timed-out"):
                metrics.ATTEMPTS.add(server, result, amount=0)
            for reason in ("overtaken", "attempt", "probe"):
                metrics.EJECTIONS.add(server, reason, amount=0)
            metrics.HEDGES.add(server, amount=0)
        metrics.refresh_with(self.publish)

    def sent(self, attempt: Attempt) -> None:
        """A batch is on its way."""
        metrics.BATCH_MESSAGES.add(len(attempt.batch))
        for message in attempt.batch:
            if len(message.trying) > 1:
                for server in message.trying:
                    if server != attempt.lane.server:
                        metrics.HEDGES.add(server)

    def answered(self, attempt: Attempt) -> None:
        """A server has answered for its batch."""
        metrics.ATTEMPTS.add(attempt.lane.server, "ok")

    def failed(self, attempt: Attempt, how: str, *, timed_out: bool) -> None:
        """An attempt failed, and ``dispatch`` has judged its server."""
        server = attempt.lane.server
        metrics.ATTEMPTS.add(server, "timed-out" if timed_out else "failed")
        self._note_failure(server, how, "attempt")

    def probe_failed(self, server: str, how: str) -> None:
        """A probe of a server failed, and it is down now, if it was not before."""
        self._note_failure(server, how, "probe")
        # frozen a while ago, and refusing connections by now
        self._servers[server].reason = how

    def overtaken(self, server: str, by: str) -> None:
        """A server is slow: another one was quicker with the same message."""
        if self._changed(server, f"overtaken by {by}", time.time()):
            metrics.EJECTIONS.add(server, "overtaken")

    def told(self, server: str, health: HealthAnswer) -> None:
        """A server has answered a probe."""
        self._servers[server].told = health

    def readmitted(self, server: str) -> None:
        """A probe of a server succeeded, and that changed what is thought of it."""
        slow = self._dispatch.health(server) is Health.SLOW
        self._changed(server, "back, but slow to answer a probe" if slow else "", time.time())

    def _note_failure(self, server: str, how: str, of_what: str) -> None:
        report, now = self._servers[server], time.time()
        report.last_failure, report.last_failure_at = how, now
        if self._changed(server, how, now):
            metrics.EJECTIONS.add(server, of_what)

    def _changed(self, server: str, reason: str, now: float) -> bool:
        """Whether the dispatch thinks otherwise of a server than it did."""
        report, state = self._servers[server], self._dispatch.health(server)
        if report.state is state:
            return False
        report.changes.append(Change(now, report.state, state, reason))
        del report.changes[:-_KEPT]
        report.state, report.reason, report.since = state, reason, now
        return True

    def publish(self) -> None:
        """Set the gauges to what is now, and let other workers know."""
        metrics.QUEUE_MESSAGES.set(self._dispatch.waiting)
        metrics.QUEUE_BYTES.set(self._dispatch.waiting_bytes)
        metrics.QUEUE_LIMIT.set(self._limit)
        oldest = time.time() - _KEPT_FOR
        for server, report in self._servers.items():
            metrics.SERVER_HEALTH.labels(server).set(_FIGURES[report.state])
            report.changes = [change for change in report.changes if change.at >= oldest]
            report.busy_lanes = report.lanes - self._dispatch.count_idle_lanes(server)
        self._report.waiting = self._dispatch.waiting
        encoded = msgspec.json.encode(self._report)
        if encoded != self._shared:
            self._shared = encoded
            share_report(encoded)


def merge_reports(reports: Iterable[bytes]) -> Report:
    """One picture of what the workers say; there must be one at least.

    Of each server the worst state that any of them sees, with its reason, since that worker sees
    it; the latest failure; and every change that any of them saw. A server that is down for one
    worker fails part of the messages.
    """
    first, *others = (msgspec.json.decode(report, type=Report) for report in reports)
    for other in others:
        first.workers += other.workers
        first.waiting += other.waiting
        for mine, theirs in zip(first.servers, other.servers, strict=True):
            _merge_server(mine, theirs)
    return first


def _merge_server(mine: ServerReport, theirs: ServerReport) -> None:
    if (_FIGURES[theirs.state], theirs.since) < (_FIGURES[mine.state], mine.since):
        mine.state, mine.reason, mine.since = theirs.state, theirs.reason, theirs.since
    mine.lanes += theirs.lanes
    mine.busy_lanes += theirs.busy_lanes
    mine.told = mine.told or theirs.told
    mine.changes = sorted([*mine.changes, *theirs.changes], key=lambda change: change.at)
    if theirs.last_failure_at > mine.last_failure_at:
        mine.last_failure, mine.last_failure_at = theirs.last_failure, theirs.last_failure_at
