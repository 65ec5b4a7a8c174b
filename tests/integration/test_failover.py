"""Services fail and come back while clients send: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealrelay.client import Client
from sealrelay.errors import Unreachable
from sealrelay.store.turn import Turn
from tests.conftest import Deployments
from tests.integration.test_messages import assert_problem, post, seal
from tests.support.deployment import PATIENCE, Deployment, Service, free_port, wait_until
from tests.support.metrics import get_report
from tests.support.senders import Senders
from tests.unit.test_turn import another_writer, stop

# CPython leaves a socket unclosed whose peer is gone between connect() and the TLS wrapping.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("failover") / "deployment")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def failing(own_deployment: Deployment) -> Deployment:
    """A deployment whose services are all up, whatever the test before did to them."""
    own_deployment.settle()
    return own_deployment


def log_since(service: Service, mark: int) -> str:
    return service.log[mark:]


@contextlib.contextmanager
def locked_store(deployment: Deployment) -> Iterator[None]:
    """While this lasts, no server commits."""
    connection = sqlite3.connect(deployment.folder / "messages.db", isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 60000")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def pause_between_commits(deployment: Deployment, server: Service) -> None:
    """Freeze a server while the turn to write is this process's: in its own turn, the other
    server would end it."""
    turn = Turn(deployment.folder / "messages.db.turn")
    try:
        with turn:
            server.pause()
    finally:
        turn.close()


def start_activated(service: Service, listener: socket.socket) -> None:
    """Start a service on a socket that it is handed over (sd_listen_fds(3))."""
    number = listener.fileno()
    script = f'exec 3<&{number} {number}<&-; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
    service.spawn(["bash", "-c", script, "bash", *service.command], pass_fds=[number])
    service.wait()


def test_process_that_is_frozen_while_it_keeps_the_store_costs_no_message(
    failing: Deployment,
) -> None:
    with (
        Senders(failing) as senders,
        another_writer(failing.folder / "messages.db") as process,
    ):
        stop(process)
        senders.await_more(20)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    senders.assert_all_stored()
    log = "".join(server.log for server in failing.servers)
    assert f"Ended process {process.pid}, which was stopped while it kept the store" in log


@pytest.mark.parametrize(
    ("sig", "victim"), [(signal.SIGTERM, 0), (signal.SIGKILL, 1)], ids=["SIGTERM", "SIGKILL"]
)
def test_stopped_server_costs_no_message_and_is_used_again_when_it_is_back(
    failing: Deployment, sig: signal.Signals, victim: int
) -> None:
    server, other = failing.servers[victim], failing.servers[1 - victim]
    mark = len(failing.coordinator.log)
    with Senders(failing) as senders:
        server.stop(sig)
        failed = f"Server {server.url} failed: "  # refused, or reset where it was just connecting
        failing.coordinator.await_line(failed, mark=mark)
        senders.await_more(20, by=other.name)
        server.start()
        healthy = f"Server {server.url} is healthy again"
        failing.coordinator.await_line(healthy, mark=mark)
        senders.await_more(by=server.name)
    senders.assert_all_stored()
    assert f"Server {other.url} failed" not in log_since(failing.coordinator, mark)
    assert senders.retries == [], "no client had to try again"


def test_frozen_server_costs_no_message_and_is_used_again_when_it_goes_on(
    failing: Deployment,
) -> None:
    server, other = failing.servers
    mark = len(failing.coordinator.log)
    with Senders(failing) as senders:
        pause_between_commits(failing, server)
        failed = f"Server {server.url} failed: no answer within "
        failing.coordinator.await_line(failed, mark=mark)
        senders.await_more(20, by=other.name)
        server.resume()
        healthy = f"Server {server.url} is healthy again"
        failing.coordinator.await_line(healthy, mark=mark)
        senders.await_more(by=server.name)
    senders.assert_all_stored()


def test_message_for_a_frozen_server_is_hedged_and_waits_for_no_time_out(
    deployments: Deployments,
) -> None:
    """One attempt may take as long as the whole test may, so only a hedge gets messages through."""
    deployment = deployments.make()
    deployment.coordinator = deployment.make_coordinator(
        "patient", attempt_timeout=2 * PATIENCE, deadline=2 * PATIENCE
    )
    for name in ("client1", "client2"):
        deployment.write_client(deployment.client_config(name).parent, name)
    deployment.start()
    server, other = deployment.servers
    with Senders(deployment) as senders:
        # Overtaken is news only of one that was healthy, as not every one is after a slow start.
        wait_until(
            lambda: {each["state"] for each in get_report(deployment)["servers"]} == {"healthy"},
            "both are healthy",
        )
        mark = len(deployment.coordinator.log)
        senders.await_more(by=server.name)
        pause_between_commits(deployment, server)
        slow = f"Server {server.url} is slow: another one overtook it"
        deployment.coordinator.await_line(slow, mark=mark)
        senders.await_more(20, by=other.name)
        mark = len(deployment.coordinator.log)
        server.resume()
        healthy = f"Server {server.url} is healthy again"
        deployment.coordinator.await_line(healthy, mark=mark)
        senders.await_more(by=server.name)
    senders.assert_all_stored()
    assert senders.retries == [], "no client had to try again"
    assert "no answer within" not in deployment.coordinator.log


def test_store_that_answers_nobody_costs_no_message(failing: Deployment) -> None:
    """So it is when a server freezes within a commit: SQLite's lock is its own until it goes on."""
    with Senders(failing) as senders:
        with locked_store(failing):
            wait_until(lambda: bool(senders.retries), "a client is told to try again")
        senders.await_more()
    senders.assert_all_stored()
    for retry in senders.retries:
        assert ": 503: " in retry or ": 504: " in retry
    for server in failing.servers:
        assert "Traceback" not in server.log


def test_killed_worker_costs_no_message(failing: Deployment) -> None:
    """gunicorn starts another; the server's port stays open all the time."""
    server = failing.servers[0]
    with Senders(failing) as senders:
        workers = server.workers
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        senders.await_more(20)
        wait_until(lambda: bool(server.workers - workers), "gunicorn starts another")
        senders.await_more(by=server.name)
    senders.assert_all_stored()


def test_failing_over_answers_within_the_callers_patience(failing: Deployment) -> None:
    """A refused connection is tried elsewhere at once, not after a pause."""
    server, coordinator = failing.servers[0], failing.coordinator
    mark = len(coordinator.log)
    server.stop(signal.SIGKILL)
    # Refused, or reset where a probe was just under way.
    failed = f"WARNING Server {server.url} failed: Connection re"
    coordinator.await_line(failed, mark=mark)
    with failing.client() as client:
        receipts = [client.send("hello") for _ in range(4)]
    assert {receipt.served_by for receipt in receipts} == {"server2"}
    assert {receipt.tries for receipt in receipts} == {1}


def test_without_any_server_503_comes_within_the_deadline_and_recovery_follows(
    failing: Deployment,
) -> None:
    token = seal(failing)
    for server in failing.servers:
        server.stop(signal.SIGKILL)
    began = time.monotonic()
    with failing.client_session() as session:
        answers = [post(failing, session, token.text) for _ in range(3)]
        assert time.monotonic() - began < 10, "the deadline of one message"
        for answer in answers:
            assert_problem(answer, 503, "no-healthy-server")
            assert int(answer.headers["Retry-After"]) >= 1
        assert failing.coordinator.probe().code == 0  # itself it is well
        for server in failing.servers:
            server.start(wait=False)

        def accepted() -> bool:
            return post(failing, session, token.text).status_code == 200

        wait_until(accepted, "the same token is accepted")
    assert failing.stored_ids().count(token.message_id.hex()) == 1


def test_client_outlasts_an_outage_of_all_servers(failing: Deployment) -> None:
    with Senders(failing) as senders:
        for server in failing.servers:
            server.stop()
        wait_until(lambda: bool(senders.retries), "a client tries again")
        assert "503: No server is healthy just now." in senders.retries[0]
        for server in failing.servers:
            server.start()
        senders.await_more()
    senders.assert_all_stored()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_restarted_coordinator_costs_no_message(failing: Deployment, sig: signal.Signals) -> None:
    with Senders(failing) as senders:
        failing.coordinator.stop(sig)
        failing.coordinator.start()
        senders.await_more()
    senders.assert_all_stored()


def test_coordinator_is_restarted_behind_its_socket_without_a_refused_connection(
    failing: Deployment,
) -> None:
    """As systemd does it: the socket stays, and who comes meanwhile waits in its queue."""
    coordinator = failing.coordinator
    coordinator.stop()
    with socket.create_server(("127.0.0.1", coordinator.port)) as listener:
        start_activated(coordinator, listener)
        with Senders(failing) as senders:
            coordinator.stop()
            start_activated(coordinator, listener)
            senders.await_more()
        coordinator.stop()
    senders.assert_all_stored()
    assert not [retry for retry in senders.retries if "refused" in retry]


def test_client_goes_on_to_the_next_coordinator(failing: Deployment) -> None:
    folder = failing.client_config("client1").parent
    dead = f"https://127.0.0.1:{free_port()}"
    config = failing.write_client(folder, "client1", dead, failing.url, file="two.toml")
    retries: list[str] = []
    with Client.from_file(config, on_retry=retries.append) as client:
        receipt = client.send("hello")
    assert receipt.tries == 2
    assert retries == [f"try 1: {dead}: Connection refused"]
    assert receipt.message_id in failing.stored_ids()


def test_client_gives_up_at_its_deadline_and_the_token_may_be_sent_again(
    failing: Deployment,
) -> None:
    folder = failing.client_config("client1").parent
    config = failing.write_client(folder, "client1", file="short.toml", deadline=1.5)
    failing.coordinator.stop()
    with Client.from_file(config) as client:
        token = client.seal("hello")
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"not acknowledged within 1\.5 s, after \d+ tries"):
            client.send_token(token)
        assert time.monotonic() - began < 1.5 + 3
        failing.coordinator.start()
        assert client.send_token(token).message_id == token.message_id.hex()


@pytest.mark.parametrize("victim", ["server", "coordinator"])
def test_stopping_does_not_wait_for_idle_connections(failing: Deployment, victim: str) -> None:
    service = failing.coordinator if victim == "coordinator" else failing.servers[0]
    with contextlib.ExitStack() as stack:
        leaf = service.config.parent
        idle = [stack.enter_context(failing.session(leaf)) for _ in range(3)]
        for session in idle:
            answer = session.get(f"{service.url}/healthz", timeout=PATIENCE)
            assert answer.status_code == 200
        began = time.monotonic()
        service.stop()
        # gunicorn would wait 15 s here (graceful_timeout) for connections kept alive for 75 s
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("victim", ["server", "coordinator"])
def test_stopping_finishes_the_request_under_way(failing: Deployment, victim: str) -> None:
    """The store is locked, so the request cannot end before the service was told to stop."""
    text = f"under way at the {victim}"
    with failing.client() as client, ThreadPoolExecutor(1) as pool:
        with locked_store(failing):
            sending = pool.submit(client.send, text)
            wait_until(lambda: any(text in s.log for s in failing.servers), "it is there")
            server = next(server for server in failing.servers if text in server.log)
            service = failing.coordinator if victim == "coordinator" else server
            mark = len(service.log)
            service.terminate()
            wait_until(lambda: "Handling signal: term" in log_since(service, mark), "it stops")
        receipt = sending.result(PATIENCE)
    service.stop()
    assert receipt.tries == 1
    # On a slow machine the other server is asked as well, and may be the first to answer.
    asked_both = all(text in server.log for server in failing.servers)
    assert asked_both or (receipt.served_by, receipt.replayed) == (server.name, False)
