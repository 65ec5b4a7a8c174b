"""Metrics of real services over mutual TLS: each figure after traffic that is known."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.fernet import Fernet

from sealrelay.identity import Role
from sealrelay.metrics import DEFINITIONS
from tests.conftest import Deployments
from tests.support.deployment import Deployment, Service, wait_until
from tests.support.http import ask, make_context, open_connection, post_json
from tests.support.metrics import Metrics, operator_leaf, scrape

# On a busy machine messages would be given to a second server as well, and be counted there.
_LATE_HEDGES = {"hedge_floor": 1.5, "hedge_ceiling": 1.5}


def set_in(service: Service, **values: float) -> None:
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    settings = service.config.read_text()
    service.config.write_text(settings.replace("\n[tls]", f"{lines}\n[tls]", 1))


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("metrics") / "deployment")
    set_in(made.coordinator, **_LATE_HEDGES)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def deployed(own_deployment: Deployment) -> Deployment:
    own_deployment.settle()
    return own_deployment


def seal(deployment: Deployment, text: str) -> str:
    keys = (deployment.client_config("client1").parent / "payload.keys").read_text()
    return Fernet(keys.splitlines()[-1]).encrypt(text.encode()).decode()


def send_token(deployment: Deployment, token: str) -> int:
    folder = deployment.client_config("client1").parent
    return post_json(deployment.coordinator, folder, "/api/data", {"data": token}).status


def wait_for(read: Callable[[], float | None], value: float) -> None:
    wait_until(lambda: read() == value, f"the figure is {value:g}")


class Scrapes:
    """All services at one moment."""

    def __init__(self, deployment: Deployment) -> None:
        self.coordinator = scrape(deployment, deployment.coordinator)
        self.servers = [scrape(deployment, server) for server in deployment.servers]

    def servers_grown(self, before: Scrapes, name: str, **labels: str) -> float:
        """The sum over both servers."""
        pairs = zip(self.servers, before.servers, strict=True)
        return sum(now.grown(then, name, **labels) for now, then in pairs)


def test_messages_are_counted_by_their_result(deployed: Deployment) -> None:
    before = Scrapes(deployed)
    token = seal(deployed, "the same again")
    assert [send_token(deployed, token) for _ in range(2)] == [200, 200]
    with deployed.client() as client:
        for number in range(7):
            client.send(f"message {number}")
    assert send_token(deployed, Fernet(Fernet.generate_key()).encrypt(b"other key").decode()) == 422
    assert send_token(deployed, "not a token") == 400
    after = Scrapes(deployed)

    def coordinator(name: str, **labels: str) -> float:
        return after.coordinator.grown(before.coordinator, name, **labels)

    def servers(name: str, **labels: str) -> float:
        return after.servers_grown(before, name, **labels)

    expected = {"ok": 8, "replayed": 1, "token-refused": 1, "malformed": 1}
    for result, count in expected.items():
        assert coordinator("sealrelay_messages_total", result=result) == count
    # what never was a message was not timed, and went to nobody
    assert coordinator("sealrelay_message_seconds_count") == 10
    assert coordinator("sealrelay_batch_messages_sum") == 10
    attempts = [
        coordinator("sealrelay_attempts_total", server=server.name, result="ok")
        for server in deployed.servers
    ]
    assert sum(attempts) == coordinator("sealrelay_batch_messages_count") == 10
    assert min(attempts) > 0

    assert servers("sealrelay_messages_total", result="ok") == 8
    assert servers("sealrelay_messages_total", result="replayed") == 1
    assert servers("sealrelay_messages_total", result="token-refused") == 1
    assert servers("sealrelay_message_seconds_count") == 10
    assert servers("sealrelay_commit_messages_sum") == 9
    # a commit is part of what a server does, which is part of what a coordinator does
    assert 0 < servers("sealrelay_commit_seconds_sum") < servers("sealrelay_message_seconds_sum")
    assert servers("sealrelay_message_seconds_sum") < coordinator("sealrelay_message_seconds_sum")


def test_each_service_shows_its_metrics_and_no_others(deployed: Deployment) -> None:
    for role, service in (
        (Role.COORDINATOR, deployed.coordinator),
        (Role.SERVER, deployed.servers[0]),
    ):
        shown = scrape(deployed, service).names
        known = {name for name, metric in DEFINITIONS.items() if role in metric.services}
        missing = known - shown
        assert missing <= {"sealrelay_crl_next_update_timestamp_seconds"}  # there is no CRL
        assert shown <= known


def test_only_operators_see_metrics_and_status(deployed: Deployment) -> None:
    for service in (deployed.coordinator, deployed.servers[0]):
        paths = ["/metrics"] + ["/api/status"] * (service is deployed.coordinator)
        for path in paths:
            assert ask(service, operator_leaf(deployed), "GET", path).status == 200
            for folder in (
                deployed.client_config("client1").parent,
                deployed.coordinator.config.parent,
                deployed.servers[0].config.parent,
            ):
                refused = ask(service, folder, "GET", path)
                assert (refused.status, refused.json()["title"]) == (403, "Role not allowed")


def test_looking_leaves_nothing_in_the_access_log(deployed: Deployment) -> None:
    for path in ("/metrics", "/status", "/api/status", "/healthz"):
        ask(deployed.coordinator, operator_leaf(deployed), "GET", path)
    ask(deployed.coordinator, operator_leaf(deployed), "GET", "/no-such-path")
    deployed.coordinator.await_line("/no-such-path")
    for line in deployed.coordinator.log.splitlines():
        assert "access peer=operator" not in line or "/no-such-path" in line


def test_certificate_expiry_is_that_of_the_files(deployed: Deployment) -> None:
    for service in (deployed.coordinator, deployed.servers[1]):
        figures = scrape(deployed, service)
        for file in ("cert", "ca"):
            pem = (service.config.parent / f"{file}.pem").read_bytes()
            expiry = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
            name = "sealrelay_certificate_expiry_timestamp_seconds"
            assert figures(name, file=file) == expiry
        assert figures("sealrelay_crl_next_update_timestamp_seconds", file="crl") is None


def test_next_update_of_a_crl_is_shown_where_there_is_one(deployments: Deployments) -> None:
    deployment = deployments.make()
    server = deployment.servers[0]
    crl = deployment.authority.make_crl()
    (server.config.parent / "crl.pem").write_bytes(crl)
    with server.config.open("a") as file:
        file.write('crl = "crl.pem"\n')
    server.start()
    next_update = x509.load_pem_x509_crl(crl).next_update_utc
    assert next_update is not None
    name = "sealrelay_crl_next_update_timestamp_seconds"
    assert scrape(deployment, server)(name, file="crl") == next_update.timestamp()


def test_server_that_stops_shows_in_every_figure_about_it(deployed: Deployment) -> None:
    one, two = deployed.servers

    def figures() -> Metrics:
        return scrape(deployed, deployed.coordinator)

    def status() -> dict[str, object]:
        answer = ask(deployed.coordinator, operator_leaf(deployed), "GET", "/api/status")
        (server,) = (each for each in answer.json()["servers"] if each["name"] == one.name)
        return {str(key): value for key, value in server.items()}

    before = figures()
    assert before("sealrelay_server_health", server=one.name) == 2
    assert (status()["state"], status()["reason"]) == ("healthy", "")
    since = status()["since"]
    assert isinstance(since, float)
    one.stop()
    wait_for(lambda: figures()("sealrelay_server_health", server=one.name), 0)
    assert figures()("sealrelay_server_health", server=two.name) == 2
    name = "sealrelay_ejections_total"
    assert figures().grown(before, name, server=one.name, reason="probe") == 1
    down = status()
    assert (down["state"], down["reason"]) == ("down", "Connection refused")
    assert down["last_failure"] == "Connection refused"
    down_since = down["since"]
    assert isinstance(down_since, float)
    assert down_since > since

    two.stop()
    wait_for(lambda: figures()("sealrelay_server_health", server=two.name), 0)
    assert send_token(deployed, seal(deployed, "to nobody")) == 503
    assert figures().grown(before, "sealrelay_messages_total", result="no-healthy-server") > 0

    deployed.start()
    wait_for(lambda: figures()("sealrelay_server_health", server=one.name), 2)
    assert (status()["state"], status()["reason"]) == ("healthy", "")
    assert status()["last_failure"] != ""
    changes = status()["changes"]
    assert isinstance(changes, list)
    went = {"at": down_since, "was": "healthy", "state": "down", "reason": "Connection refused"}
    assert went in changes
    assert (changes[-1]["state"], changes[-1]["at"]) == ("healthy", status()["since"])


def test_frozen_server_costs_hedges_and_an_ejection(deployed: Deployment) -> None:
    one, two = deployed.servers
    for _ in range(10):  # on a busy machine a probe may find out before any message is late
        deployed.settle()
        before = scrape(deployed, deployed.coordinator)
        with deployed.client() as client:
            one.pause()
            try:
                assert {client.send(f"{number}").served_by for number in range(4)} == {two.name}
                figures = scrape(deployed, deployed.coordinator)
            finally:
                one.resume()
        if figures.grown(before, "sealrelay_ejections_total", server=one.name, reason="overtaken"):
            break
    else:
        pytest.fail("a frozen server was never overtaken")
    assert figures.grown(before, "sealrelay_hedges_total", server=one.name) >= 1
    assert figures("sealrelay_server_health", server=one.name) in (0, 1)
    wait_for(
        lambda: scrape(deployed, deployed.coordinator)("sealrelay_server_health", server=one.name),
        2,
    )


def test_connections_are_shown_by_what_they_do(deployed: Deployment) -> None:
    service = deployed.coordinator
    name = "sealrelay_connections"
    assert scrape(deployed, service)(name, state="busy") == 1  # the one that asks
    with open_connection(service, operator_leaf(deployed)):
        wait_for(lambda: scrape(deployed, service)(name, state="idle"), 1)
    wait_for(lambda: scrape(deployed, service)(name, state="idle"), 0)


def test_refused_connections_are_counted(deployed: Deployment) -> None:
    service = deployed.servers[0]
    before = scrape(deployed, service)
    context = make_context(operator_leaf(deployed), with_leaf=False)
    with pytest.raises(OSError, match="certificate required"):
        ask(service, context, "GET", "/metrics")
    name = "sealrelay_refused_connections_total"
    wait_for(lambda: scrape(deployed, service).grown(before, name, reason="tls"), 1)


def test_a_scrape_sums_over_all_workers(deployments: Deployments) -> None:
    deployment = deployments.make()
    for service in deployment.services:
        set_in(service, workers=2)
    set_in(deployment.coordinator, **_LATE_HEDGES)
    deployment.start()
    coordinator = deployment.coordinator
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):  # a connection each, so that each worker gets some
            with deployment.client() as client:
                client.send("hello")
            sent += 1

    def counted() -> float | None:
        return scrape(deployment, coordinator)("sealrelay_messages_total", result="ok")

    def files(pattern: str) -> list[Path]:
        return list(coordinator.config.parent.glob(f"sealrelay-*/{pattern}"))

    before = Scrapes(deployment)
    send(20)
    for _ in range(6):  # whichever worker is asked
        wait_for(counted, sent)
    limit = scrape(deployment, coordinator)("sealrelay_queue_limit_messages")
    assert limit == 2 * 10_000
    report = ask(coordinator, operator_leaf(deployment), "GET", "/api/status").json()
    assert report["workers"] == 2

    # one that was killed has counted all the same, but holds nothing any more
    pid = min(coordinator.workers)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in coordinator.workers, "the worker has ended")
    wait_until(lambda: not files(f"gauge_live*_{pid}.db"), "what it held is forgotten")
    wait_until(lambda: len(files("report_*")) == 2, "another one runs in its place")
    send(5)
    wait_for(counted, sent)
    for server in deployment.servers:
        assert len(server.workers) == 2
    wait_until(
        lambda: (
            Scrapes(deployment).servers_grown(before, "sealrelay_messages_total", result="ok")
            == sent
        ),
        "the servers have counted all of them",
    )
    coordinator.stop()
    assert not list(coordinator.config.parent.glob("sealrelay-*"))


def test_counts_begin_at_zero_with_every_start(deployed: Deployment) -> None:
    with deployed.client() as client:
        client.send("before")
    first = scrape(deployed, deployed.coordinator)
    assert (first("sealrelay_messages_total", result="ok") or 0) > 0
    deployed.coordinator.stop(signal.SIGKILL)
    deployed.start()
    second = scrape(deployed, deployed.coordinator)
    assert second("sealrelay_messages_total", result="ok") == 0
    started = "sealrelay_start_timestamp_seconds"
    assert (second(started) or 0) > (first(started) or 0)
