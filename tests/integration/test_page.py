"""The status page: what a coordinator sends, and what a real browser makes of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from sealrelay.identity import Role
from tests.integration.test_metrics import set_in
from tests.support.browser import Browser, needs_browser, parse_page, read_corner, text_of
from tests.support.command import run_main
from tests.support.deployment import Deployment, Service, wait_until
from tests.support.http import ask, post_json
from tests.support.metrics import get_report, operator_leaf, scrape

VERDICT = ".//section[@aria-label='Verdict']"
LIGHT, DARK = (0xF6, 0xF7, 0xF9), (0x10, 0x15, 0x1C)
"""--page of the style sheet."""


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("page") / "deployment")
    set_in(made.coordinator, hedge_floor=1.5, hedge_ceiling=1.5)
    made.publish_crl()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def deployed(own_deployment: Deployment) -> Deployment:
    own_deployment.settle()
    return own_deployment


def get_page(deployment: Deployment, query: str = "") -> str:
    answer = ask(deployment.coordinator, operator_leaf(deployment), "GET", f"/status{query}")
    assert answer.status == 200
    return answer.body.decode()


def kill(deployment: Deployment, service: Service) -> None:
    """Kill a server, and wait until the coordinator has noticed that nobody is there."""
    service.stop(signal.SIGKILL)

    def is_known() -> bool:
        servers = get_report(deployment)["servers"]
        return any(server["reason"] == "Connection refused" for server in servers)

    wait_until(is_known, "the server is known to be down")


def send(deployment: Deployment, count: int) -> None:
    with deployment.client() as client:
        for number in range(count):
            client.send(f"message {number}")


def test_page_says_what_status_says_of_each_server(deployed: Deployment) -> None:
    send(deployed, 10)
    kill(deployed, deployed.servers[0])
    page, report = parse_page(get_page(deployed)), get_report(deployed)
    shown = run_main("status", "--config", str(deployed.operator_config()), "--json")
    rows = {row["name"]: row for row in json.loads(shown.out)["rows"]}
    assert text_of(page, f"{VERDICT}//h2") == "1 of 2 servers is down"
    states = []
    for server in report["servers"]:
        name, state = server["name"], server["state"]
        where = f".//article[@id='server-{name}']"
        assert page.find(where).get("data-state") == state == rows[name]["state"]  # type: ignore[union-attr]
        words = text_of(page, where)
        assert f"{state} for" in words
        assert f"of {server['lanes']} busy" in words
        assert server["url"] in words
        for told in (server["reason"], server["last_failure"]):
            assert told in words
        states.append(state)
    assert states[0] == "down"
    assert "down" not in states[1:]
    assert "Connection refused" in text_of(page, ".//article[@id='server-server1']")
    assert text_of(page, ".//*[@id='waiting']") == "0"


def test_page_counts_what_metrics_count(deployed: Deployment) -> None:
    send(deployed, 10)
    client = deployed.client_config("client1").parent
    for _ in range(3):
        post_json(deployed.coordinator, client, "/api/data", {"data": "not a token"})
    page, figures = parse_page(get_page(deployed)), scrape(deployed, deployed.coordinator)
    for result in ("ok", "malformed"):
        row = page.find(f".//tr[@data-result='{result}']")
        assert row is not None
        since_start = figures("sealrelay_messages_total", result=result)
        assert row[2].text == f"{since_start:,.0f}"
        recent = int((row[1].text or "").replace(",", ""))
        assert recent >= {"ok": 10, "malformed": 3}[result]
    assert page.find(".//tr[@data-result='queue-full']") is None
    latencies = {row[0].text: row[2].text or "" for row in page.findall(".//*[@id='latency']//tr")}
    assert latencies["p50"].endswith(" ms")


def test_page_shows_when_certificates_and_crls_run_out(deployed: Deployment) -> None:
    wait_until(
        lambda: all(server["told"] for server in get_report(deployed)["servers"]),
        "each server has been probed",
    )
    page = parse_page(get_page(deployed))
    for service in deployed.services:
        files = service.config.parent
        leaf, ca = (
            x509.load_pem_x509_certificate((files / name).read_bytes()).not_valid_after_utc
            for name in ("cert.pem", "ca.pem")
        )
        crl = x509.load_pem_x509_crl((files / "crl.pem").read_bytes()).next_update_utc
        assert crl is not None
        times = page.findall(f".//tr[@data-owner='{service.name}']//time")
        assert [time.get("datetime") for time in times] == [
            f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (leaf, ca, crl)
        ]
    # the tests' leaves live for an hour, which somebody is to see to
    assert "coordinator1, server1, server2 run out" in text_of(page, VERDICT)


def test_what_a_server_uses_stays_known_when_it_is_down(deployed: Deployment) -> None:
    kill(deployed, deployed.servers[0])
    page = parse_page(get_page(deployed))
    assert len(page.findall(".//tr[@data-owner='server1']//time")) == 3
    deployed.coordinator.stop()
    deployed.coordinator.start()
    wait_until(lambda: bool(get_report(deployed)["servers"][1]["told"]), "server2 was probed")
    page = parse_page(get_page(deployed))
    assert "not known" in text_of(page, ".//tr[@data-owner='server1']")
    assert len(page.findall(".//tr[@data-owner='server2']//time")) == 3


def test_browser_is_told_to_keep_nothing_and_to_run_nothing(deployed: Deployment) -> None:
    answer = ask(deployed.coordinator, operator_leaf(deployed), "GET", "/status")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert policy[1].startswith("style-src 'sha256-")
    assert policy[2:] == ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OPERATOR])
def test_nobody_but_an_operator_sees_the_page(deployed: Deployment, role: Role) -> None:
    answer = ask(deployed.coordinator, deployed.issue(role.value, "other"), "GET", "/status")
    assert (answer.status, answer.json()["title"]) == (403, "Role not allowed")
    assert b"server1" not in answer.body
    assert "server1" in get_page(deployed)


# In a browser


@pytest.fixture
def browser(deployed: Deployment, tmp_path: Path) -> Browser:
    leaf = operator_leaf(deployed)
    return Browser(tmp_path / "operator", deployed.url, leaf / "ca.pem", leaf)


@needs_browser
def test_operator_opens_the_page_in_a_browser(deployed: Deployment, browser: Browser) -> None:
    send(deployed, 20)
    kill(deployed, deployed.servers[0])
    page = parse_page(browser.read(f"{deployed.url}/status?refresh=off"))
    title = text_of(page, "./head/title")
    assert title == "1 of 2 servers is down · coordinator1 · sealrelay"
    server1 = text_of(page, ".//article[@id='server-server1']")
    assert "down for" in server1
    assert "Connection refused" in server1
    assert "down" not in text_of(page, ".//article[@id='server-server2']//p[1]")
    row = page.find(".//tr[@data-result='ok']")
    assert row is not None
    assert int((row[2].text or "").replace(",", "")) >= 20
    assert text_of(page, ".//*[@id='p99']").endswith(" ms")
    # the style sheet is the one thing that its policy lets in
    for width in (1200, 390):
        for dark, colour in ((False, LIGHT), (True, DARK)):
            picture = browser.take_picture(f"{deployed.url}/status", width=width, dark=dark)
            assert read_corner(picture) == colour, picture


@needs_browser
def test_page_loads_itself_again(deployed: Deployment, tmp_path: Path) -> None:
    coordinator = deployed.make_coordinator("coordinator2", log_level="debug")
    coordinator.start()
    leaf = operator_leaf(deployed)
    browser = Browser(tmp_path / "operator", coordinator.url, leaf / "ca.pem", leaf)

    def count_views() -> int:
        return coordinator.log.count('"GET /status" 200')

    try:
        with browser.stay(f"{coordinator.url}/status"):
            wait_until(lambda: count_views() >= 2, "the page was loaded again")
    finally:
        coordinator.stop()
    assert "/favicon.ico" not in coordinator.log


@needs_browser
def test_browser_without_an_operators_leaf_sees_nothing(
    deployed: Deployment, browser: Browser, tmp_path: Path
) -> None:
    url, ca = f"{deployed.url}/status", operator_leaf(deployed) / "ca.pem"
    refused = "Refused 127.0.0.1: peer did not return a certificate"
    assert refused not in deployed.coordinator.log
    seen = Browser(tmp_path / "nobody", deployed.url, ca).read(url)
    # nothing, or a page that the browser has made of that itself
    assert "server1" not in seen
    assert refused in deployed.coordinator.log
    client = deployed.client_config("client1").parent
    seen = Browser(tmp_path / "client", deployed.url, ca, client).read(url)
    assert "role-not-allowed" in seen
    assert "server1" not in seen
    assert "server1" in browser.read(url)
