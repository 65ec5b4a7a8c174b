"""Every metric there is. Others call ``add``, ``observe`` and ``set`` of what stands here.

What is counted for each message is added up in plain numbers, and handed to prometheus_client twice
a second and before every scrape: 0.1 µs a message instead of 2 to 3. All of this
belongs to one thread, the one that gevent runs in.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import gevent
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from sealrelay import __version__
from sealrelay.identity import Role
from sealrelay.processes import shared_folder
from sealrelay.tls import TlsSet

_log = logging.getLogger("sealrelay.metrics")

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Media type of what ``scrape`` returns."""

_PUBLISH_EVERY = 0.5
"""Seconds."""

_SECONDS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_MESSAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


@dataclass(frozen=True)
class Definition:
    """A metric, as the documentation and the rules need to know it."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    text: str
    services: frozenset[Role]
    """Whose ``/metrics`` have it."""
    labels: tuple[str, ...] = ()


DEFINITIONS: dict[str, Definition] = {}
"""Every metric by its name."""

_folder = shared_folder()  # as prometheus_client does, at import
_registry = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call] # they double what is shown
_publishers: list[Callable[[], None]] = []
_BOTH = frozenset({Role.COORDINATOR, Role.SERVER})
_COORDINATOR = frozenset({Role.COORDINATOR})
_SERVER = frozenset({Role.SERVER})


def _define(
    kind: str, name: str, text: str, services: frozenset[Role], labels: tuple[str, ...] = ()
) -> None:
    DEFINITIONS[name] = Definition(name, kind, text, services, labels)


class _Count:
    """A counter, with a label or several."""

    def __init__(self, name: str, text: str, services: frozenset[Role], *labels: str) -> None:
        _define("counter", name, text, services, labels)
        self._counter = Counter(name, text, labels, registry=_registry)
        self._pending: dict[tuple[str, ...], int] = {}
        _publishers.append(self._publish)

    def add(self, *labels: str, amount: int = 1) -> None:
        """Count; ``amount=0`` makes a series that stands at zero, so that its first step shows."""
        self._pending[labels] = self._pending.get(labels, 0) + amount

    def _publish(self) -> None:
        pending, self._pending = self._pending, {}
        for labels, amount in pending.items():
            self._counter.labels(*labels).inc(amount)


class _Spread(Histogram):
    """A histogram without labels."""

    def __init__(
        self, name: str, text: str, services: frozenset[Role], buckets: Sequence[float]
    ) -> None:
        _define("histogram", name, text, services)
        super().__init__(name, text, buckets=buckets, registry=_registry)
        self._pending = [0] * len(self._upper_bounds)
        self._pending_sum = 0.0
        _publishers.append(self._publish)

    def add(self, value: float, count: int = 1) -> None:
        """``count`` things had this value."""
        self._pending[bisect_left(self._upper_bounds, value)] += count
        self._pending_sum += value * count

    def _publish(self) -> None:
        if not any(self._pending):
            return
        pending, self._pending = self._pending, [0] * len(self._pending)
        total, self._pending_sum = self._pending_sum, 0.0
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, pending, strict=True):
            if count:
                bucket.inc(count)


def _gauge(
    name: str, text: str, services: frozenset[Role], *labels: str, over_workers: str
) -> Gauge:
    """A gauge; ``over_workers`` makes one figure of those of several worker processes."""
    _define("gauge", name, text, services, labels)
    # A type alias of prometheus_client's lists the modes; they are checked when this runs.
    return Gauge(name, text, labels, registry=_registry, multiprocess_mode=over_workers)  # type: ignore[arg-type]


MESSAGES = _Count(
    "sealrelay_messages_total",
    "Messages answered: `ok`, `replayed`, or the name of the problem",
    _BOTH,
    "result",
)
MESSAGE_SECONDS = _Spread(
    "sealrelay_message_seconds",
    "Seconds from a message's arrival to its answer",
    _BOTH,
    _SECONDS,
)
BATCH_MESSAGES = _Spread(
    "sealrelay_batch_messages",
    "Messages in one batch: sent by a coordinator, taken in by a server",
    _BOTH,
    _MESSAGES,
)
QUEUE_MESSAGES = _gauge(
    "sealrelay_queue_messages",
    "Messages that wait for a server, in all workers",
    _COORDINATOR,
    over_workers="livesum",
)
QUEUE_BYTES = _gauge(
    "sealrelay_queue_bytes",
    "Bytes of the tokens of messages that wait for a server, in all workers",
    _COORDINATOR,
    over_workers="livesum",
)
QUEUE_LIMIT = _gauge(
    "sealrelay_queue_limit_messages",
    "Messages that may wait for a server, in all workers",
    _COORDINATOR,
    over_workers="livesum",
)
ATTEMPTS = _Count(
    "sealrelay_attempts_total",
    "Batches sent to a server: `ok`, `failed` or `timed-out`",
    _COORDINATOR,
    "server",
    "result",
)
HEDGES = _Count(
    "sealrelay_hedges_total",
    "Messages that another server was given as well, because this one was late",
    _COORDINATOR,
    "server",
)
EJECTIONS = _Count(
    "sealrelay_ejections_total",
    "Times a server was ejected, because it was `overtaken`, an `attempt` failed or a `probe` did",
    _COORDINATOR,
    "server",
    "reason",
)
SERVER_HEALTH = _gauge(
    "sealrelay_server_health",
    "What the coordinator thinks of a server: 0 down, 1 slow, 2 healthy; the worst of all workers",
    _COORDINATOR,
    "server",
    over_workers="livemin",
)
COMMIT_SECONDS = _Spread(
    "sealrelay_commit_seconds",
    "Seconds that one transaction of the store took, until it was on disk",
    _SERVER,
    _SECONDS,
)
COMMIT_MESSAGES = _Spread(
    "sealrelay_commit_messages",
    "Messages in one transaction of the store",
    _SERVER,
    _MESSAGES,
)
STORE_BYTES = _gauge(
    "sealrelay_store_bytes",
    "Bytes that the store takes up, space to be used again included; looked at every 15 seconds",
    _SERVER,
    over_workers="mostrecent",
)
CONNECTIONS = _gauge(
    "sealrelay_connections",
    "Open connections: `handshake` is under way, `idle`, or a request is being answered (`busy`)",
    _BOTH,
    "state",
    over_workers="livesum",
)
REFUSED_CONNECTIONS = _Count(
    "sealrelay_refused_connections_total",
    "Connections refused: `tls` (no leaf of ours, a revoked one, another TLS version), `too-slow` "
    "with handshake or head, `crowded` out by others of the same peer, `lost` meanwhile, or their "
    "leaf counts `no-longer`",
    _BOTH,
    "reason",
)
CERTIFICATE_EXPIRY = _gauge(
    "sealrelay_certificate_expiry_timestamp_seconds",
    "When the service's certificate (`cert`) and that of the CA (`ca`) expire, as loaded",
    _BOTH,
    "file",
    over_workers="livemin",
)
CRL_NEXT_UPDATE = _gauge(
    "sealrelay_crl_next_update_timestamp_seconds",
    "When the first of the CRLs in `tls.crl` (`crl`) runs out, if there are any, as loaded",
    _BOTH,
    "file",
    over_workers="livemin",
)
RELOADS = _Count(
    "sealrelay_reloads_total",
    "Changes of the `TLS files` or `keyrings` that a worker found: taken (`ok`), or `refused` "
    "because something in them is wrong",
    _BOTH,
    "files",
    "result",
)
STARTED = _gauge(
    "sealrelay_start_timestamp_seconds",
    "When the service was started",
    _BOTH,
    over_workers="max",
)
INFO = _gauge(
    "sealrelay_info",
    "1; the labels say which service this is, and its version",
    _BOTH,
    "service",
    "name",
    "version",
    over_workers="max",
)


# Those that rules look at stand at 0 from the start: a rate sees no step from nothing to 1.
_RESULTS = {
    Role.COORDINATOR: (
        *("ok", "replayed", "malformed", "token-refused", "queue-full", "no-healthy-server"),
        *("deadline-passed", "store-full", "refused-by-server", "unexpected"),
    ),
    Role.SERVER: (
        *("ok", "replayed", "malformed", "token-refused", "store-full", "store-unavailable"),
        "unexpected",
    ),
}
_REASONS = ("tls", "too-slow", "crowded", "lost", "no-longer")


def start(role: Role, name: str, started: float) -> None:
    """Begin to publish, in a worker. ``started``: of the service, in seconds since the epoch."""
    INFO.labels(role.value, name, __version__).set(1)
    STARTED.set(started)
    for result in _RESULTS[role]:
        MESSAGES.add(result, amount=0)
    for reason in _REASONS:
        REFUSED_CONNECTIONS.add(reason, amount=0)
    gevent.spawn(_keep_publishing)


def refresh_with(publisher: Callable[[], None]) -> None:
    """Have ``publisher`` called whenever figures are published, to set gauges to what is now."""
    _publishers.append(publisher)


def publish() -> None:
    """Hand over what was counted in this process since the last time."""
    for publisher in _publishers:
        publisher()


def scrape(role: Role) -> bytes:
    """The figures of all workers of a service with ``role``, in Prometheus' text format 0.0.4."""
    publish()
    return generate_latest(_Scrape(role))


def collect(role: Role) -> Iterable[Metric]:
    """The same, to be read here."""
    publish()
    return _Scrape(role).collect()


def note_tls(tls: TlsSet) -> None:
    """This set of TLS files is in use from now on."""
    CERTIFICATE_EXPIRY.labels("cert").set(tls.expires)
    CERTIFICATE_EXPIRY.labels("ca").set(tls.trust.expires)
    if tls.trust.next_update is not None:
        CRL_NEXT_UPDATE.labels("crl").set(tls.trust.next_update)


class _Scrape(Collector):
    """What all workers have published, without the metrics of the other kind of service."""

    def __init__(self, role: Role) -> None:
        self._role = role

    def collect(self) -> Iterable[Metric]:
        everything: Iterable[Metric] = (
            _registry.collect()
            if _folder is None
            else MultiProcessCollector(None, str(_folder)).collect()  # type: ignore[no-untyped-call]
        )
        return [metric for metric in everything if self._role in _definition_of(metric).services]


def _definition_of(metric: Metric) -> Definition:
    # prometheus_client takes the ending off a counter's name
    return DEFINITIONS.get(metric.name) or DEFINITIONS[f"{metric.name}_total"]


def _keep_publishing() -> None:
    while True:  # ends with the process
        gevent.sleep(_PUBLISH_EVERY)
        try:
            publish()
        except Exception:  # noqa: BLE001 - a full /run, say; there is another try soon
            _log.exception("The figures could not be published")
