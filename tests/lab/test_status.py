"""An operator's view of a deployed node: `sealrelay status`, and metrics over its leaf."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.node import COORDINATOR, SERVERS, Node, wait_for


def look(node: Node) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, the rows by name, and standard error."""
    done = node.try_run("sealrelay", "status", "--json")
    return (
        done.returncode,
        {row["name"]: row for row in json.loads(done.stdout)["rows"]},
        done.stderr,
    )


@pytest.mark.usefixtures("settled")
def test_operator_sees_a_stopped_server_and_why(node: Node) -> None:
    wait_for(lambda: look(node)[0] == 0, "everything is healthy")
    code, rows, error = look(node)
    names = {"node1", node.server_name(5001), node.server_name(5002)}
    assert (code, set(rows), error) == (0, names, "")
    assert all(row["p99_ms"] > 0 for row in rows.values())
    days = {(row["certificate_expires"] - row["since"]) / 86_400 for row in rows.values()}
    assert all(30 < left <= 366 for left in days)

    node.run("systemctl", "stop", SERVERS[1])
    name = node.server_name(5002)
    wait_for(
        lambda: look(node)[1][name]["reason"] == "Connection refused", "it is known to be down"
    )
    code, rows, error = look(node)
    assert code == 10
    assert f"server {name} is down: Connection refused" in error
    assert rows[name]["state"] == "down"
    assert rows["node1"]["state"] == "healthy"
    table = node.try_run("sealrelay", "status")
    assert table.returncode == 10
    assert "down: Connection" in table.stdout


def test_metrics_are_counted_in_memory_that_only_the_service_sees(node: Node) -> None:
    for unit, user in ((COORDINATOR, "sealrelay-coordinator"), (SERVERS[0], "sealrelay-server")):
        folder = unit.removesuffix(".service").replace("@", "-")
        assert node.run("stat", "-c", "%a %U", f"/run/{folder}").split() == ["700", user]
        assert node.run("stat", "-f", "-c", "%T", f"/run/{folder}").strip() == "tmpfs"
        assert "counter_" in node.run("find", f"/run/{folder}", "-name", "*.db")


def test_metrics_are_for_the_operators_leaf_only(node: Node) -> None:
    def scrape(folder: str, port: int) -> tuple[int, str]:
        script = (
            "import http.client, ssl, sys\n"
            "folder, port = sys.argv[1:]\n"
            "context = ssl.create_default_context(cafile=f'{folder}/ca.pem')\n"
            "context.load_cert_chain(f'{folder}/cert.pem', f'{folder}/key.pem')\n"
            "peer = http.client.HTTPSConnection('localhost', int(port), context=context)\n"
            "peer.request('GET', '/metrics')\n"
            "answer = peer.getresponse()\n"
            "print(answer.status)\n"
            "print(answer.read().decode())\n"
        )
        status, _, body = node.run("python3", "-I", "-c", script, folder, str(port)).partition("\n")
        return int(status), body

    for port in (8000, 5001):
        status, body = scrape("/etc/sealrelay/operator", port)
        assert status == 200
        assert 'sealrelay_messages_total{result="ok"}' in body
        assert scrape("/etc/sealrelay/clients/client1", port)[0] == 403
