"""Rules and dashboard look at metrics that there are, and the documentation tells them all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from sealrelay.metrics import DEFINITIONS
from tests.repo.conftest import REPOSITORY, read_yaml

MONITORING = REPOSITORY / "monitoring"
PAGE = (REPOSITORY / "docs" / "monitoring.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in read_yaml(MONITORING / "alerts.yml")["groups"] for rule in group["rules"]
]
_METRIC = re.compile(r"(sealrelay_\w+)(?:\{([^}]*)\})?")
_TARGET_LABELS = {"job", "instance", "le"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (package prometheus) is not installed"
)


def series_of(name: str) -> set[str]:
    """The names of the series that a metric has."""
    if DEFINITIONS[name].kind == "histogram":
        return {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return {name}


SERIES = {series: name for name in DEFINITIONS for series in series_of(name)}


def dashboard_queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


QUERIES = [*dashboard_queries(), *(rule["expr"] for rule in RULES)]


@pytest.mark.parametrize("query", QUERIES)
def test_query_names_metrics_and_labels_that_there_are(query: str) -> None:
    found = _METRIC.findall(query)
    assert found or "up{" in query
    for series, selector in found:
        assert series in SERIES, f"there is no {series}"
        labels = set(re.findall(r"(\w+)(?==~|!~|!=|=)", selector or ""))
        labels = {label for label in labels if label not in _TARGET_LABELS}
        assert labels <= set(DEFINITIONS[SERIES[series]].labels), f"{series}: {labels}"


def test_every_metric_is_looked_at() -> None:
    named = {SERIES[series] for query in QUERIES for series, _ in _METRIC.findall(query)}
    assert named == set(DEFINITIONS)


def test_dashboard_can_be_imported() -> None:
    assert DASHBOARD["title"] == "sealrelay"
    assert DASHBOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    covered: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & covered, f"{panel['title']} lies on another panel"
        covered |= cells
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_every_rule_says_what_and_how_bad_and_is_documented() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"`{rule['alert']}`" in PAGE, rule["alert"]


def test_rules_and_example_agree_on_the_jobs() -> None:
    configs = read_yaml(MONITORING / "prometheus.yml")["scrape_configs"]
    jobs = {config["job_name"] for config in configs}
    assert jobs == {"sealrelay-coordinators", "sealrelay-servers"}
    for rule in RULES:
        for job in re.findall(r'job="([^"]+)"', rule["expr"]):
            assert job in jobs
    defaults = {v["current"].get("value") for v in DASHBOARD["templating"]["list"]} - {None}
    assert defaults == jobs


def test_every_rule_is_seen_to_fire_and_to_be_silent() -> None:
    names = {rule["alert"] for rule in RULES}
    fires: set[str] = set()
    silent: set[str] = set()
    for case in read_yaml(MONITORING / "alerts_test.yml")["tests"]:
        for test in case["alert_rule_test"]:
            (fires if test["exp_alerts"] else silent).add(test["alertname"])
    assert fires == silent == names


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_example_uses_the_files_that_the_role_makes() -> None:
    folder = yaml.safe_load((REPOSITORY / "roles/operator/vars/main.yml").read_text())[
        "_operator_dir"
    ]
    for config in read_yaml(MONITORING / "prometheus.yml")["scrape_configs"]:
        assert config["scheme"] == "https"
        assert config["tls_config"] == {
            f"{key}_file": f"{folder}/{key}.pem" for key in ("ca", "cert", "key")
        }


def test_every_metric_is_documented_as_it_is() -> None:
    rows = re.findall(r"^\| `(sealrelay_\w+)` \|.*$", PAGE, re.MULTILINE)
    assert rows == list(DEFINITIONS)
    for metric in DEFINITIONS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        services = ", ".join(sorted(role.value for role in metric.services))
        row = f"| `{metric.name}` | {metric.kind} | {labels} | {services} | {metric.text} |"
        assert row in PAGE, row
