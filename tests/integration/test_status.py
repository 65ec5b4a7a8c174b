"""`sealrelay status` against real services: what is well, and what is not and why."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Result, run_main
from tests.support.deployment import PATIENCE, Deployment, free_port, wait_until


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("status") / "deployment")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def deployed(own_deployment: Deployment) -> Deployment:
    own_deployment.settle()
    return own_deployment


def run_status(config: Path, *options: str) -> Result:
    return run_main("status", "--config", str(config), *options)


Rows = dict[str, dict[str, Any]]


def look(config: Path) -> tuple[int, Rows, str]:
    """Exit code, the picture's rows by name (by URL where it has none), and standard error."""
    shown = run_status(config, "--json")
    picture = json.loads(shown.out)
    assert picture["healthy"] is (shown.code == 0)
    return shown.code, {row["name"] or row["url"]: row for row in picture["rows"]}, shown.err


def look_until(
    config: Path, condition: Callable[[int, Rows], bool], what: str
) -> tuple[int, Rows, str]:
    """The first look of which a condition is true; on a busy machine a server may be slow."""
    seen = look(config)

    def look_again() -> bool:
        nonlocal seen
        seen = look(config)
        return condition(seen[0], seen[1])

    wait_until(look_again, what)
    return seen


def test_everything_healthy_is_exit_code_0_and_one_row_each(deployed: Deployment) -> None:
    with deployed.client() as client:
        for number in range(20):
            client.send(f"message {number}")
    config = deployed.operator_config()
    _, rows, error = look_until(config, lambda code, _: code == 0, "everything is healthy")
    assert error == ""
    assert list(rows) == ["coordinator1", "server1", "server2"]
    for row in rows.values():
        assert (row["state"], row["reason"]) == ("healthy", "")
        assert row["messages_per_second"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= 10_000
        assert row["since"] < row["certificate_expires"]
    assert rows["coordinator1"]["waiting"] == 0
    assert rows["server1"]["store_bytes"] > 0

    table = run_status(config)
    assert (table.code == 0) is (table.err == "")
    for text in ("coordinator coordinator1", "server server1", "server server2", "healthy", " ms"):
        assert text in table.out


def test_stopped_server_is_down_with_the_reason(deployed: Deployment) -> None:
    deployed.servers[0].stop()
    config = deployed.operator_config()
    code, rows, error = look_until(
        config,
        # before the coordinator has noticed, it is only unreachable, for the same reason
        lambda _, rows: (
            (rows["server1"]["state"], rows["server1"]["reason"]) == ("down", "Connection refused")
        ),
        "the server is known to be down",
    )
    assert code == 10
    assert "server server1 is down: Connection refused" in error
    assert rows["server1"]["state"] == "down"
    assert rows["server1"]["last_failure"] == "Connection refused"
    assert rows["server1"]["since"] <= rows["server1"]["last_failure_at"]
    assert rows["coordinator1"]["state"] == "healthy"
    assert rows["server2"]["state"] in ("healthy", "slow")
    table = run_status(config)
    assert table.code == 10
    assert "down: Connection" in table.out


def test_frozen_server_is_not_healthy_and_status_does_not_hang(deployed: Deployment) -> None:
    server = deployed.servers[1]
    server.pause()
    try:
        code, rows, _ = look_until(
            deployed.operator_config(),
            lambda _, rows: rows["server2"]["state"] == "down",
            "the server is known to be down",
        )
    finally:
        server.resume()
    assert code == 10
    assert "no answer within" in rows["server2"]["reason"]


def test_unreachable_coordinator_is_a_row_and_the_other_one_tells(deployed: Deployment) -> None:
    nobody = f"https://127.0.0.1:{free_port()}"
    code, rows, error = look(deployed.operator_config(nobody, deployed.url))
    assert code == 10
    assert list(rows) == [nobody, "coordinator1", "server1", "server2"]
    assert (rows[nobody]["state"], rows[nobody]["reason"]) == ("unreachable", "Connection refused")
    assert rows["coordinator1"]["state"] == "healthy"
    host = nobody.removeprefix("https://")
    assert f"coordinator {host} is unreachable: Connection refused" in error
    assert "Traceback" not in error


def test_without_any_coordinator_servers_are_unknown(deployed: Deployment) -> None:
    code, rows, _ = look(deployed.operator_config(f"https://127.0.0.1:{free_port()}"))
    assert code == 10
    for name in ("server1", "server2"):
        assert rows[name]["state"] == "unknown"
        assert rows[name]["reason"] == "no coordinator can be asked about it"
        assert rows[name]["version"] != ""


def test_whoever_answers_in_a_servers_place_is_not_taken_for_it(deployed: Deployment) -> None:
    config = deployed.operator_config()
    with config.open("a") as file:
        file.write(f'\n[[servers]]\nname = "server3"\nurl = "https://localhost:{free_port()}"\n')
    server = look(config)[1]["server3"]
    assert (server["state"], server["reason"]) == ("unreachable", "Connection refused")
    lines = config.read_text().splitlines()
    lines[-1] = f'url = "https://localhost:{deployed.servers[0].port}"'
    config.write_text("\n".join(lines))
    reason = look(config)[1]["server3"]["reason"]
    assert reason == "spiffe://sealrelay.internal/server/server1 answers there"


def test_server_that_no_coordinator_uses_is_unknown(deployed: Deployment) -> None:
    lonely = deployed.make_coordinator("coordinator2")
    text = lonely.config.read_text()
    lonely.config.write_text(text[: text.rindex("[[servers]]")])
    lonely.start()
    try:
        wait_until(
            lambda: look(deployed.operator_config(lonely.url))[1]["server1"]["state"] == "healthy",
            "the coordinator uses its only server",
        )
        code, rows, _ = look(deployed.operator_config(lonely.url))
    finally:
        lonely.stop()
    assert code == 10
    assert (rows["server2"]["state"], rows["server2"]["reason"]) == (
        "unknown",
        "no coordinator uses it",
    )


def test_worst_opinion_of_several_coordinators_counts(deployed: Deployment) -> None:
    other = deployed.make_coordinator("coordinator2")
    port = deployed.servers[0].port
    other.config.write_text(other.config.read_text().replace(f":{port}", f":{free_port()}"))
    other.start()
    try:
        config = deployed.operator_config(deployed.url, other.url)
        wait_until(lambda: look(config)[1]["server1"]["state"] == "down", "it is down for one")
        rows = look(config)[1]
    finally:
        other.stop()
    assert rows["server1"]["reason"] == "Connection refused, says coordinator2"
    assert rows["server2"]["state"] == "healthy"


def test_leaf_without_the_operator_role_learns_nothing(deployed: Deployment) -> None:
    config = deployed.operator_config()
    client = deployed.client_config("client1").parent
    refused = run_status(config.with_name("operator.toml"), "--json")
    assert "waiting" in refused.out
    text = config.read_text()
    for file in ("cert.pem", "key.pem"):
        text = text.replace(f'"{file}"', f'"{client / file}"')
    stolen = config.with_name("stolen.toml")
    stolen.write_text(text)
    shown = run_status(stolen)
    assert shown.code == 8
    assert "the certificate is spiffe://sealrelay.internal/client/client1" in shown.err


def test_watch_shows_what_came_since_the_look_before(deployed: Deployment) -> None:
    config = deployed.operator_config()
    command = [sys.executable, "-m", "sealrelay", "status", "--watch", "0.2", "--json"]
    # Where the tests run in the background, Ctrl-C is ignored by them and by all they start.
    command = ["env", "--default-signal=INT", *command]
    errors = config.with_name("errors")
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [*command, "--config", str(config)], stdout=subprocess.PIPE, stderr=stderr
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, errors.read_text()
            assert json.loads(line)["window"] is None
            with deployed.client() as client:
                for number in range(5):
                    client.send(f"message {number}")
            counted, rates = 0.0, [1.0]
            while not counted or any(rates[-2:]):  # until two looks have seen nothing new
                picture = json.loads(process.stdout.readline())
                assert picture["window"] >= 0.2
                rates.append(picture["rows"][0]["messages_per_second"] or 0.0)
                counted += rates[-1] * picture["window"]
                assert len(rates) < 100
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) in (0, 10)
        finally:
            process.kill()
    # A part is asked a moment before or after the picture is made, so about 5.
    assert 2 < counted < 10
    assert "Traceback" not in errors.read_text()


def test_settings_file_of_an_operator_is_checked(deployed: Deployment) -> None:
    config = deployed.operator_config()
    checked = run_main("check-config", str(config))
    assert (checked.code, checked.out) == (0, f"{config}: good settings of operator operator1\n")
    config.write_text(config.read_text().replace("https://", "http://", 1))
    checked = run_main("check-config", str(config))
    assert checked.code == 8
    assert "coordinators: 'http://127.0.0.1:" in checked.err
    shown = run_status(config)
    assert (shown.code, shown.out) == (8, "")
