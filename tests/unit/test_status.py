"""Quantiles, and what came between two looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrelay.cli.status import _tell_time_left
from sealrelay.figures import Scrape, find_quantile, read_scrape
from sealrelay.identity import Role
from sealrelay.status import Row
from sealrelay.words import tell_duration

INF = math.inf


def test_quantile_lies_where_its_share_of_the_bucket_is() -> None:
    counts = {0.1: 50.0, 0.2: 90.0, 0.4: 100.0, INF: 100.0}
    assert find_quantile(0.5, counts) == pytest.approx(0.1)
    assert find_quantile(0.25, counts) == pytest.approx(0.05)
    assert find_quantile(0.7, counts) == pytest.approx(0.15)
    assert find_quantile(0.99, counts) == pytest.approx(0.38)


def test_quantile_above_all_bounds_is_the_last_bound() -> None:
    assert find_quantile(0.99, {1.0: 5.0, 10.0: 5.0, INF: 10.0}) == 10.0


def test_quantile_of_nothing_is_unknown() -> None:
    assert find_quantile(0.5, {}) is None
    assert find_quantile(0.5, {1.0: 0.0, INF: 0.0}) is None


@given(
    st.lists(st.floats(0.0001, 9.9), min_size=1, max_size=50),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    bounds = [0.001, 0.01, 0.1, 1.0, 10.0]
    counts = {bound: float(sum(value <= bound for value in values)) for bound in bounds}
    found = find_quantile(share, counts | {INF: float(len(values))})
    assert found is not None
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert lower <= found <= upper * (1 + 1e-9)


def test_second_look_is_about_what_came_after_the_first() -> None:
    first = Scrape(100.0, 50.0, messages={"ok": 10.0}, latencies={1.0: 10.0})
    second = Scrape(104.0, 50.0, messages={"ok": 30.0, "malformed": 2.0}, latencies={1.0: 30.0})
    recent, seconds = second.since(first)
    assert (recent.messages, recent.latencies, seconds) == (
        {"ok": 20.0, "malformed": 2.0},
        {1.0: 20.0},
        4.0,
    )


@pytest.mark.parametrize("before", [None, Scrape(100.0, 50.0, messages={"ok": 99.0})])
def test_service_that_was_started_meanwhile_is_seen_since_its_start(before: Scrape | None) -> None:
    now = Scrape(104.0, 102.0, messages={"ok": 3.0})
    recent, seconds = now.since(before)
    assert (recent.messages, seconds) == ({"ok": 3.0}, 2.0)


def test_first_certificate_to_expire_counts() -> None:
    name = "sealrelay_certificate_expiry_timestamp_seconds"
    text = f'# TYPE {name} gauge\n{name}{{file="ca"}} 2000\n{name}{{file="cert"}} 1000\n'
    assert read_scrape(text, 1.0).expires == 1000.0
    assert read_scrape("", 1.0).expires is None


def test_crl_that_runs_out_is_seen() -> None:
    name = "sealrelay_crl_next_update_timestamp_seconds"
    text = f'# TYPE {name} gauge\n{name}{{file="crl"}} 3000\n'
    assert read_scrape(text, 1.0).crl_next_update == 3000.0
    assert read_scrape("", 1.0).crl_next_update is None


@pytest.mark.parametrize(
    ("crl", "text", "urgent"),
    [
        (None, "20 d", False),
        (3, "20 d, 3 d", False),
        (1, "20 d, 1 d", True),
        (-1, "20 d, overdue", True),
    ],
)
def test_time_that_certificate_and_crl_have_left(
    crl: int | None, text: str, *, urgent: bool
) -> None:
    day = 86_400
    row = Row(Role.SERVER, "server1", "https://127.0.0.1:1", "healthy")
    row.certificate_expires = 20.0 * day + 1
    row.crl_next_update = None if crl is None else crl * day + 1.0
    shown = _tell_time_left(row, 0.0)
    assert shown.plain == text
    assert any("red" in str(span.style) for span in shown.spans) is urgent


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (7500, "2 h 5 min"), (90_000 * 10, "10 d")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert tell_duration(seconds) == text
