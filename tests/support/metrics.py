"""What a service shows under /metrics and /api/status, and an operator to ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.deployment import Deployment, Service
from tests.support.http import ask

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def operator_leaf(deployment: Deployment) -> Path:
    """The folder of an operator's leaf."""
    return deployment.operator_config().parent


def get_report(deployment: Deployment) -> Any:
    """What the coordinator thinks of its servers, and of itself."""
    return ask(deployment.coordinator, operator_leaf(deployment), "GET", "/api/status").json()


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.names = set()
        self._figures: Figures = {}
        for family in text_string_to_metric_families(text):
            self.names.add(family.name + ("_total" if family.type == "counter" else ""))
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self._figures, key
                self._figures[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float | None:
        """The figure with exactly these labels; None when there is none."""
        return self._figures.get((name, frozenset(labels.items())))

    def grown(self, before: Metrics, name: str, **labels: str) -> float:
        """How much more it is than it was before."""
        return (self(name, **labels) or 0.0) - (before(name, **labels) or 0.0)


def scrape(deployment: Deployment, service: Service) -> Metrics:
    answer = ask(service, operator_leaf(deployment), "GET", "/metrics")
    assert answer.status == 200
    return Metrics(answer.body.decode())
