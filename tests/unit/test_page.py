"""The status page: its verdict, its figures, and that what it is told stays text."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
import tomli
from flask import Flask

from sealrelay.dispatch.decisions import Health
from sealrelay.dispatch.observer import Report, ServerReport
from sealrelay.figures import Scrape
from sealrelay.page import (
    History,
    StatusPage,
    Step,
    Validity,
    draw_latencies,
    draw_rates,
    judge,
    list_validities,
)
from sealrelay.wire import Expiries, HealthAnswer
from tests.repo.conftest import REPOSITORY
from tests.support.browser import parse_page, text_of

DAY = 86_400.0
HOSTILE = "<script>alert(1)</script>\"'><img src=x>{{ 7 * 7 }}&amp;"


def server(name: str = "server1", state: Health = Health.HEALTHY, **values: object) -> ServerReport:
    made = ServerReport(name, f"https://{name}:5001", state, since=1.0)
    for field, value in values.items():
        setattr(made, field, value)
    return made


def render(
    *servers: ServerReport, name: str = "c1", domain: str = "d", refresh: bool = True
) -> str:
    app = Flask("sealrelay.coordinator", static_folder=None)
    page = StatusPage(app, domain)
    with app.test_request_context():
        response = page.show(Report(name, 1.0, 1, 0, list(servers)), refresh=refresh)
    return response.get_data(as_text=True)


@pytest.mark.parametrize(
    "where", ["name", "url", "reason", "last_failure", "version", "coordinator", "trust domain"]
)
def test_text_from_outside_is_text_and_nothing_else(where: str) -> None:
    one = server(state=Health.DOWN)
    if where == "version":
        one.told = HealthAnswer(version=HOSTILE, started=1.0)
    elif where in ("name", "url", "reason", "last_failure"):
        setattr(one, where, HOSTILE)
    text = render(
        one,
        name=HOSTILE if where == "coordinator" else "c1",
        domain=HOSTILE if where == "trust domain" else "d",
    )
    page = parse_page(text)  # which a stray bracket or quote would break
    assert HOSTILE in "".join(page.itertext())
    assert not {"script", "img"} & {element.tag for element in page.iter()}
    assert "<script" not in text


def test_control_characters_are_shown_as_what_they_are() -> None:
    text = render(server(state=Health.DOWN, reason="\x1b[2J\u202ereversed"))
    assert r"\x1b[2J\u202ereversed" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_page_needs_no_script_and_fetches_nothing() -> None:
    page = parse_page(render(server()))
    tags = {element.tag for element in page.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for element in page.iter():
        assert "style" not in element.attrib, "the policy would not let it in"
        assert not any(name.startswith("on") for name in element.attrib)
        assert "src" not in element.attrib
        assert element.get("href", "/")[0] in "/?#", "it leads out of this coordinator"


def test_policy_lets_in_the_style_sheet_of_the_page() -> None:
    app = Flask("sealrelay.coordinator", static_folder=None)
    page = StatusPage(app, "d")
    with app.test_request_context():
        response = page.show(Report("c1", 1.0, 1, 0, [server()]), refresh=True)
    style = re.search(r"<style>(.*?)</style>", response.get_data(as_text=True), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in response.headers["Content-Security-Policy"]
    assert "unsafe" not in response.headers["Content-Security-Policy"]


def test_page_asks_to_be_loaded_again_unless_it_is_told_not_to() -> None:
    live, still = render(server()), render(server(), refresh=False)
    assert '<meta http-equiv="refresh" content="5">' in live
    assert '<a href="?refresh=off">Stop</a>' in live
    assert "http-equiv" not in still
    assert '<a href="/status">Go on</a>' in still


@pytest.mark.parametrize(
    ("states", "level", "text"),
    [
        ("healthy", "good", "The server is healthy"),
        ("healthy healthy", "good", "All 2 servers are healthy"),
        ("healthy slow", "warn", "1 of 2 servers is slow"),
        ("slow slow", "warn", "2 of 2 servers are slow"),
        ("down healthy", "warn", "1 of 2 servers is down"),
        ("slow down down", "warn", "2 of 3 servers are down"),
        ("down down", "bad", "All 2 servers are down"),
        ("down", "bad", "The server is down"),
    ],
)
def test_verdict_is_the_worst_that_there_is_to_say(states: str, level: str, text: str) -> None:
    servers = [server(state=Health(state)) for state in states.split()]
    verdict = judge(servers, [])
    assert (verdict.level, verdict.text) == (level, text)
    page = parse_page(render(*servers))
    assert text_of(page, ".//section[@aria-label='Verdict']//h2") == text


def judge_validity(**told: float) -> tuple[list[Validity], str, str]:
    """What is known of a server whose certificates and CRL end in so many days."""
    now = 1000 * DAY
    ends = Expiries(**{name: now + days * DAY for name, days in told.items()})
    report = Report("c1", 1.0, 1, 0, [server(told=HealthAnswer(expires=ends))])
    own = Scrape(now, expiries={"cert": now + 300 * DAY, "ca": now + 900 * DAY})
    validities = list_validities(report, own)
    verdict = judge(report.servers, validities)
    return validities, verdict.level, verdict.detail


def test_certificates_and_crl_that_last_are_no_news() -> None:
    validities, level, detail = judge_validity(cert=300, ca=900, crl=20)
    assert (level, detail) == ("good", "")
    assert [validity.owner for validity in validities] == ["c1", "server1"]
    assert [each and each.left for each in (validities[1].leaf, validities[1].crl)] == [
        "300 d",
        "20 d",
    ]
    assert validities[0].crl is None


@pytest.mark.parametrize(
    ("which", "days", "level", "left"),
    [
        ("leaf", 14.1, "good", "14 d"),
        ("leaf", 13.9, "warn", "13 d"),
        ("leaf", -0.1, "bad", "expired"),
        ("ca", 13.9, "warn", "13 d"),
        ("crl", 2.1, "good", "2 d"),
        ("crl", 1.9, "warn", "1 d"),
        ("crl", -0.1, "bad", "overdue"),
    ],
)
def test_what_runs_out_is_told_in_time(which: str, days: float, level: str, left: str) -> None:
    told = {"cert": 300.0, "ca": 900.0, "crl": 20.0} | {which.replace("leaf", "cert"): days}
    validities, worst, detail = judge_validity(**told)
    found = getattr(validities[1], which)
    assert (found.level, found.left) == (level, left)
    assert worst == ("good" if level == "good" else "warn")
    assert detail == ("" if level == "good" else "Certificates or CRLs of server1 run out.")


def test_verdict_on_a_server_that_is_down_leaves_no_certificate_out() -> None:
    validities, _, detail = judge_validity(cert=1, ca=900, crl=20)
    verdict = judge([server(state=Health.DOWN), server("two")], validities)
    assert verdict.text == "1 of 2 servers is down"
    assert verdict.detail == f"The others take all messages. {detail}"
    assert judge([server(state=Health.DOWN)], validities).level == "bad"


def test_server_that_has_said_nothing_is_not_known() -> None:
    for told in (None, HealthAnswer(version="0.0.9")):  # an older release says less
        page = parse_page(render(server(told=told)))
        assert "not known" in text_of(page, ".//tr[@data-owner='server1']")


def test_recent_is_the_last_minute_or_as_long_as_is_known() -> None:
    history, now = History(), Scrape(1000.0, 1.0, messages={"ok": 100.0})
    assert history.recent(now)[1] == 999.0
    for at in range(900, 1000, 5):
        history.note(Scrape(float(at), 1.0, messages={"ok": at - 900.0}))
    recent, seconds = history.recent(now)
    assert (seconds, recent.answered) == (65.0, 65.0)


def test_steps_are_of_ten_minutes() -> None:
    history = History()
    for number in range(200):
        messages = {"ok": 10.0 * number, "malformed": 5.0 * number}
        latencies = {0.001: 10.0 * number, 0.01: 15.0 * number}
        at = 1000.0 + 5 * number
        history.note(Scrape(at, 1.0, messages=messages, latencies=latencies))
    assert len(history.steps) == 120
    newest = history.steps[-1]
    assert (newest.rate, newest.problems) == (3.0, 1.0)
    assert 1.0 < newest.p99 < 10.0


def test_clock_that_was_set_back_makes_no_step() -> None:
    history = History()
    for at in (1000.0, 990.0, 995.0):
        history.note(Scrape(at, 1.0))
    assert len(history.steps) == 1


def step(rate: float, problems: float = 0.0, p99: float = 0.0) -> Step:
    return Step(rate, problems, p99)


def test_chart_has_a_bar_a_step_and_the_newest_at_the_right() -> None:
    chart = draw_rates([step(10), step(0), step(20, 6)])
    assert chart.highest == 20.0
    assert [bar.x for bar in chart.bars] == [chart.width - 3, chart.width - 2, chart.width - 1]
    assert [bar.height for bar in chart.bars] == [20.0, 0.0, 40.0]
    assert [bar.bad for bar in chart.bars] == [0.0, 0.0, 12.0]
    assert chart.outline == "M117 40v-20h0.8v20zM119 40v-40h0.8v40z"
    assert chart.bad_outline == "M119 12v-12h0.8v12z"


def test_one_problem_among_thousands_is_still_seen() -> None:
    (bar,) = draw_rates([step(100_000, 1)]).bars
    assert bar.bad > 0.5


def test_chart_of_nothing_is_empty() -> None:
    for chart in (draw_rates([step(0)]), draw_latencies([step(0)]), draw_rates([])):
        assert chart.highest == 0.0
        assert not any(bar.height for bar in chart.bars)
    assert "none in ten minutes" in render(server())


def test_chart_of_latencies_has_no_bar_where_nothing_was_answered() -> None:
    chart = draw_latencies([step(0), step(1, p99=12.5)])
    assert chart.highest == 12.5
    assert [bar.height for bar in chart.bars] == [0.0, 40.0]


def test_package_contains_the_templates() -> None:
    """They are no modules that would be found."""
    app = REPOSITORY / "app"
    project = tomli.loads((app / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["sealrelay"]
    package = app / "src" / "sealrelay"
    packaged = {file for pattern in patterns for file in package.glob(pattern)}
    assert packaged >= set((package / "templates").iterdir())
    assert {file.name for file in packaged} >= {"status.html", "status.css"}
