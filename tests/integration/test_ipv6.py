"""Every hop over IPv6: clients, coordinator, servers and operators."""

from __future__ import annotations

import pytest

from sealrelay.errors import CertificateRefused
from tests.conftest import Deployments
from tests.support.command import run_main
from tests.support.deployment import Deployment


def _move_to_ipv6(deployment: Deployment, *hosts: str) -> None:
    """Have all listen on ::1, with leaves for ``hosts``, and look for each other there."""
    for service in deployment.services:
        role = service.config.parent.name.partition("-")[0]
        deployment.issue(role, service.name, hosts=hosts)
    clients = [deployment.client_config(name) for name in ("client1", "client2")]
    for config in [*(service.config for service in deployment.services), *clients]:
        config.write_text(config.read_text().replace("127.0.0.1", "[::1]"))


def test_messages_flow_over_ipv6(deployments: Deployments) -> None:
    deployment = deployments.make()
    operator = deployment.operator_config()
    operator.write_text(operator.read_text().replace("127.0.0.1", "[::1]"))
    _move_to_ipv6(deployment, "::1")
    deployment.start()
    with deployment.client() as client:
        served = {client.send(f"message {number}").served_by for number in range(8)}
    assert served == {server.name for server in deployment.servers}
    assert deployment.stored() == 8
    shown = run_main("status", "--config", str(operator), "--json")
    assert shown.code == 0, shown
    assert f"https://[::1]:{deployment.coordinator.port}" in shown.out


def test_a_leaf_for_another_ipv6_address_is_refused(deployments: Deployments) -> None:
    """So it is the address in the leaf that lets the other test pass."""
    deployment = deployments.make()
    _move_to_ipv6(deployment, "fd00::12")
    for service in deployment.services:
        service.start()
    with (
        deployment.client() as client,
        pytest.raises(CertificateRefused, match=r"not valid for .::1"),
    ):
        client.send("a message")
    assert deployment.stored() == 0
