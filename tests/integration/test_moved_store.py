"""The store's files are moved, replaced or mounted over while servers run: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealrelay.store import open_store
from tests.integration.test_messages import assert_problem, post, seal
from tests.support.deployment import PATIENCE, Deployment, Service, wait_until
from tests.support.http import ask, post_json
from tests.support.moves import MOVES, Move
from tests.support.senders import Senders

# CPython leaves a socket unclosed whose peer is gone between connect() and the TLS wrapping.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

_WORKERS = 2
_REMEDY = "put the former one back; for another, stop all servers first (docs/store.md)"


def make_deployment(folder: Path) -> Deployment:
    """Its store is in a folder of its own, and each server has several processes."""
    (folder / "store").mkdir(parents=True)
    made = Deployment(folder / "deployment", f"sqlite:///{folder}/store/messages.db")
    for server in made.servers:
        text = server.config.read_text()
        server.config.write_text(f"workers = {_WORKERS}\n{text}")
    start(*made.servers)
    made.start()
    return made


def start(*servers: Service) -> None:
    """Start servers, and wait for all workers: each opens the store when it starts."""
    for server in servers:
        server.start()
        probed = server.probe("--reloaded", "--wait", str(PATIENCE))
        assert probed.code == 0, probed.err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = make_deployment(tmp_path_factory.mktemp("moved"))
    yield made
    made.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Deployment]:
    """One whose servers a test may restart."""
    made = make_deployment(tmp_path)
    yield made
    made.stop()


def path_of(deployment: Deployment) -> Path:
    return Path(deployment.store_url.removeprefix("sqlite:///"))


def hand_in(deployment: Deployment, server: Service, token: str) -> dict[str, Any]:
    """What a server says of a message that a coordinator hands in."""
    batch = {"messages": [{"client": "client1", "data": token}]}
    folder = deployment.coordinator.config.parent
    (outcome,) = post_json(server, folder, "/api/batch", batch).json()["outcomes"]
    return dict(outcome)


def assert_unhealthy(deployment: Deployment, server: Service, reason: str) -> None:
    """To coordinators, and to whoever probes it on its host."""
    folder = deployment.coordinator.config.parent
    for _ in range(5 * _WORKERS):  # which process answers is chance
        answer = ask(server, folder, "GET", "/healthz")
        assert answer.status == 503
        assert f"{reason}: {_REMEDY}." in answer.json()["detail"]
    probed = server.probe()
    assert probed.code == 3
    assert f"answered 503: {path_of(deployment).parent}" in probed.err
    assert f"{reason}: {_REMEDY}." in probed.err


def assert_stores_nothing(deployment: Deployment, server: Service, *tokens: str) -> None:
    for token in tokens:
        for _ in range(5 * _WORKERS):
            outcome = hand_in(deployment, server, token)
            assert (outcome["status"], outcome["problem"]) == (503, "store-unavailable"), outcome
            assert str(path_of(deployment)) not in outcome["detail"], "a client may be told this"


def await_health(deployment: Deployment, server: Service) -> None:
    folder = deployment.coordinator.config.parent
    wait_until(
        lambda: all(
            ask(server, folder, "GET", "/healthz").status == 200 for _ in range(5 * _WORKERS)
        ),
        f"{server.name} is healthy",
    )


@pytest.mark.parametrize("move", MOVES)
def test_servers_acknowledge_nothing_until_the_store_is_back(
    move: Move, shared: Deployment
) -> None:
    path, session = path_of(shared), shared.client_session()
    mark = len(shared.coordinator.log)
    with Senders(shared) as senders:
        with move(path) as reason:
            tokens = [seal(shared).text for _ in range(3)]
            for server in shared.servers:
                assert_stores_nothing(shared, server, *tokens)
                assert_unhealthy(shared, server, reason)
                failed = f"Server {server.url} failed: answered 503"
                shared.coordinator.await_line(failed, mark=mark)
            known = len(senders.receipts)
            assert_problem(post(shared, session, tokens[0]), 503, "no-healthy-server")
            assert len(senders.receipts) == known, "nothing is acknowledged meanwhile"
        for server in shared.servers:
            await_health(shared, server)
        senders.await_more(10)
    senders.assert_all_stored()
    for token in tokens:
        assert post(shared, session, token).status_code == 200
    assert len(shared.stored_ids()) == len(set(shared.stored_ids()))
    for service in shared.services:
        assert "Traceback" not in service.log


def test_coordinators_tell_operators_what_is_wrong(shared: Deployment) -> None:
    folder = shared.operator_config().parent
    with MOVES[0](path_of(shared)) as reason:

        def is_told() -> bool:
            report = ask(shared.coordinator, folder, "GET", "/api/status").json()
            return all(f"{reason}: {_REMEDY}." in server["reason"] for server in report["servers"])

        wait_until(is_told, "operators are told of the store")
    shared.settle()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_file_system_mounted_over_the_folder_is_not_stored_in(shared: Deployment) -> None:
    folder = path_of(shared).parent
    token = seal(shared).text
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine's root may not mount")
    try:
        for server in shared.servers:
            assert_stores_nothing(shared, server, token)
            assert_unhealthy(shared, server, "messages.db is gone")
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", folder], check=True)
    for server in shared.servers:
        await_health(shared, server)
        assert hand_in(shared, server, token)["status"] == 200


def test_another_store_is_taken_by_servers_that_start_and_never_beside_the_former(
    own: Deployment,
) -> None:
    """Each acknowledges only what it stores in the file that is in place, old or new."""
    path, (first, second) = path_of(own), own.servers
    with own.client() as client:
        former = client.send("in the former store").message_id
    with move_to_another_store(path):
        for server in own.servers:
            assert_stores_nothing(own, server, seal(own).text)
        assert own.stored() == 0, "what took its place is left alone"
        first.stop()
        start(first)
        token = seal(own).text
        assert hand_in(own, first, token)["status"] == 200
        assert_stores_nothing(own, second, token)
        second.stop()  # which must not take away the files that the other one has open
        assert hand_in(own, first, seal(own).text)["status"] == 200
        start(second)
        assert hand_in(own, second, token)["replayed"]
        assert own.stored() == 2
    for server in own.servers:
        assert_stores_nothing(own, server, seal(own).text)
        server.stop()
        start(server)
    own.settle()
    assert former in own.stored_ids()


@contextlib.contextmanager
def move_to_another_store(path: Path) -> Iterator[None]:
    """The folder with all files of the store is put aside for one with a new store."""
    folder, away = path.parent, path.parent.with_name("away")
    folder.rename(away)
    folder.mkdir()
    store = open_store(f"sqlite:///{path}")
    store.migrate()
    store.close()
    yield
    folder.rename(folder.with_name("later"))
    away.rename(folder)
