"""What a service counted, as its metrics say: rates, quantiles, what came between two looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

K = TypeVar("K")


@dataclass
class Scrape:
    """What one service counted until a moment. Times: seconds since the epoch."""

    at: float
    started: float = 0.0
    expiries: dict[str, float] = field(default_factory=dict)
    """When its certificate (``cert``) and that of the CA (``ca``) expire."""
    crl_next_update: float | None = None
    version: str = ""
    messages: dict[str, float] = field(default_factory=dict)
    """By result."""
    latencies: dict[float, float] = field(default_factory=dict)
    """Messages answered within so many seconds, by those seconds."""
    attempts: dict[tuple[str, str], float] = field(default_factory=dict)
    """Batches by server and result; of coordinators, as all that follows but the last."""
    hedges: dict[str, float] = field(default_factory=dict)
    """Messages given to another server as well, by the server that was late."""
    ejections: dict[tuple[str, str], float] = field(default_factory=dict)
    """By server and reason."""
    queue_limit: int | None = None
    store_bytes: int | None = None

    @property
    def expires(self) -> float | None:
        """When the first of the certificates expires."""
        return min(self.expiries.values(), default=None)

    @property
    def answered(self) -> float:
        """Messages, whatever their result."""
        return sum(self.messages.values())

    @property
    def problems(self) -> float:
        """Messages that were neither stored nor there already."""
        return self.answered - self.messages.get("ok", 0.0) - self.messages.get("replayed", 0.0)

    def find_latency(self, share: float) -> float | None:
        """Milliseconds that ``share`` of the messages stay below."""
        seconds = find_quantile(share, self.latencies)
        return None if seconds is None else seconds * 1000

    def since(self, before: Scrape | None) -> tuple[Scrape, float]:
        """What came since ``before``, and in how many seconds. Since the service's start where
        there was nothing before, or where it was started again meanwhile."""
        if before is None or before.started != self.started:
            return self, self.at - self.started
        recent = Scrape(
            self.at,
            messages=_subtract(self.messages, before.messages),
            latencies=_subtract(self.latencies, before.latencies),
            attempts=_subtract(self.attempts, before.attempts),
            hedges=_subtract(self.hedges, before.hedges),
            ejections=_subtract(self.ejections, before.ejections),
        )
        return recent, self.at - before.at


def read_scrape(text: str, at: float) -> Scrape:
    """What ``/metrics`` said at a time. Raises ValueError for what isn't in Prometheus' form."""
    return read_families(text_string_to_metric_families(text), at)


def read_families(families: Iterable[Metric], at: float) -> Scrape:
    """The same of metrics that were never text."""
    scrape = Scrape(at)
    for family in families:
        for name, labels, value, *_ in family.samples:
            match name:
                case "sealrelay_messages_total":
                    scrape.messages[labels["result"]] = value
                case "sealrelay_message_seconds_bucket":
                    scrape.latencies[float(labels["le"])] = value
                case "sealrelay_attempts_total":
                    scrape.attempts[labels["server"], labels["result"]] = value
                case "sealrelay_hedges_total":
                    scrape.hedges[labels["server"]] = value
                case "sealrelay_ejections_total":
                    scrape.ejections[labels["server"], labels["reason"]] = value
                case "sealrelay_queue_limit_messages":
                    scrape.queue_limit = int(value)
                case "sealrelay_start_timestamp_seconds":
                    scrape.started = value
                case "sealrelay_certificate_expiry_timestamp_seconds":
                    scrape.expiries[labels["file"]] = value
                case "sealrelay_crl_next_update_timestamp_seconds":
                    scrape.crl_next_update = value
                case "sealrelay_store_bytes":
                    scrape.store_bytes = int(value)
                case "sealrelay_info":
                    scrape.version = labels["version"]
    return scrape


def find_quantile(share: float, counts: dict[float, float]) -> float | None:
    """The value that ``share`` of all stay below; ``counts`` of those up to each bound.

    None where there are none. Within a bucket values are taken to be spread evenly, as Prometheus'
    histogram_quantile does; of what is above the last finite bound, only that bound is known.
    """
    total = max(counts.values(), default=0.0)
    if total <= 0:
        return None
    wanted = share * total
    lower, below = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= wanted:
            if bound == float("inf") or count == below:
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


def _subtract(counts: Mapping[K, float], before: Mapping[K, float]) -> dict[K, float]:
    return {key: count - before.get(key, 0.0) for key, count in counts.items()}
