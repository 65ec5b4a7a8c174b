"""The database fails, comes back or is replaced while clients send: nothing lost or doubled."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.command import run_main
from tests.support.deployment import Deployment, wait_until
from tests.support.http import ask, post_json
from tests.support.postgres import Postgres, make_postgres
from tests.support.senders import Senders

# CPython leaves a socket unclosed whose peer is gone between connect() and the TLS wrapping.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with make_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def deployment_on(
    database: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment whose store is that database; each test leaves both running."""
    made = Deployment(tmp_path_factory.mktemp("database") / "deployment", database.make_database())
    made.start()
    yield made
    made.stop()


def assert_no_stack_trace(deployment: Deployment) -> None:
    for service in deployment.made:
        assert "Traceback" not in service.log


def test_messages_are_stored_listed_and_known_again(deployment_on: Deployment) -> None:
    config = str(deployment_on.servers[0].config)
    with deployment_on.client() as client:
        token = client.seal("in PostgreSQL")
        first, again = client.send_token(token), client.send_token(token)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.served_by == first.served_by
    shown = run_main("messages", "show", first.message_id, "--config", config)
    assert shown.out.endswith("  in PostgreSQL\n")
    listed = run_main("messages", "list", "--limit", "1", "--config", config)
    assert listed.out == shown.out
    assert deployment_on.stored_ids().count(first.message_id) == 1


@pytest.mark.parametrize("sig", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate", "killed"])
def test_restarted_database_costs_no_message(
    deployment_on: Deployment, database: Postgres, sig: signal.Signals
) -> None:
    with Senders(deployment_on) as senders:
        database.restart(sig)
        senders.await_more(20)
    senders.assert_all_stored()
    assert_no_stack_trace(deployment_on)


def test_database_that_is_away_is_waited_for_by_clients_and_by_a_server_that_starts(
    deployment_on: Deployment, database: Postgres
) -> None:
    server = deployment_on.servers[0]
    with Senders(deployment_on) as senders:
        database.stop()
        wait_until(lambda: bool(senders.retries), "a client is told to try again")
        server.stop()
        mark = len(server.log)
        server.start(wait=False)
        server.await_line("Waiting for the store: ", mark=mark)
        database.start()
        server.wait()
        senders.await_more()
    senders.assert_all_stored()
    assert_no_stack_trace(deployment_on)


def test_server_goes_on_while_its_database_is_frozen(
    deployment_on: Deployment, database: Postgres
) -> None:
    """Commits are awaited in a thread of the operating system that holds nobody else up."""
    server, folder = deployment_on.servers[0], deployment_on.coordinator.config.parent
    texts = (f"sent to a frozen database, {number}" for number in itertools.count())

    def is_answered_meanwhile() -> bool:
        text = next(texts)
        with deployment_on.client() as client:
            message = {"client": "client1", "data": client.seal(text).text}
        with ThreadPoolExecutor(1) as pool:
            database.freeze()
            try:
                batch = {"messages": [message]}
                posting = pool.submit(post_json, server, folder, "/api/batch", batch)
                server.await_line(text)
                answer = ask(server, folder, "GET", "/nothing")
                return answer.status == 404 and not posting.done()
            finally:
                database.thaw()

    wait_until(is_answered_meanwhile, "an answer comes while a commit is awaited")
    assert_no_stack_trace(deployment_on)


def test_promoted_standby_has_every_acknowledged_message_exactly_once(tmp_path: Path) -> None:
    with make_postgres() as primary, contextlib.ExitStack() as stack:
        database = primary.make_database()
        standby = primary.copy("standby1")
        primary.replicate_to(standby)
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = database.replace(f"127.0.0.1:{primary.port}", hosts)
        deployment = Deployment(tmp_path / "deployment", url)
        stack.callback(deployment.stop)
        deployment.start()
        with Senders(deployment) as senders:
            senders.await_more(20)
            primary.stop(signal.SIGKILL)
            wait_until(lambda: bool(senders.retries), "a client is told to try again")
            standby.promote()
            senders.await_more(20)
        senders.assert_all_stored()
        assert_no_stack_trace(deployment)
