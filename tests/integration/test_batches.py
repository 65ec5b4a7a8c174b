"""One bad message never fails its neighbours, whoever finds out that it is bad."""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealrelay.errors import MessageRefused
from tests.conftest import Deployments
from tests.support.deployment import PATIENCE


def test_message_that_servers_refuse_costs_its_neighbours_nothing(
    deployments: Deployments,
) -> None:
    deployment = deployments.make()
    for server in deployment.servers:
        settings = server.config.read_text()
        server.config.write_text(
            settings.replace("log_payloads", "max_body_bytes = 2048\nlog_payloads")
        )
    deployment.settle()  # the coordinator may have been there before a server
    before, mark = deployment.stored(), len(deployment.coordinator.log)

    def send_small(number: int) -> str:
        with deployment.client("client1") as client:
            return [client.send(f"{number} {n}").message_id for n in range(10)][-1]

    def send_big(_: int) -> None:
        with deployment.client("client2") as client, pytest.raises(MessageRefused):
            client.send("x" * 20_000)

    with ThreadPoolExecutor(8) as pool:
        big = pool.map(send_big, range(10))
        small = pool.map(send_small, range(6))
        assert len(list(small)) == 6
        assert len(list(big)) == 10
    assert deployment.stored() - before == 60
    # a server that refuses one message is as healthy as ever
    assert "failed" not in deployment.coordinator.log[mark:]


def test_body_that_does_not_arrive_is_refused_and_holds_no_place(
    deployments: Deployments,
) -> None:
    deployment = deployments.make()
    deployment.start()
    folder = deployment.client_config("client1").parent
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    address = ("127.0.0.1", deployment.coordinator.port)
    with (
        socket.create_connection(address, timeout=PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as slow,
        deployment.client("client2") as client,
    ):
        slow.sendall(
            b"POST /api/data HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"data": "'
        )
        assert client.send("beside it").tries == 1
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:sealrelay:problem:too-slow" in answer
