"""A client's host that is off: what does not need it goes on, and says who is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.peers import CLIENT1
from tests.support.node import Control, Node, Play

_INVENTORY = """
all:
  children:
    clients:
      hosts:
        away:
          # Of the lab's own network, and nobody's.
          ansible_host: {address}
          ansible_ssh_common_args: -o BatchMode=yes -o ConnectTimeout=5
          client_names: [client9]
"""
_LEFT = "away can't be reached. What node1 has of the keys of client9 stays as it is"


@pytest.fixture
def away(node: Node, tmp_path: Path) -> Path:
    """An inventory that has a host more, which is off."""
    path = tmp_path / "away.yml"
    network = node.run("hostname", "-I").split()[0].rpartition(".")[0]
    path.write_text(_INVENTORY.format(address=f"{network}.250"))
    return path


def _is_as_it_was(play: Play) -> bool:
    return "node1 : ok=" in play.text and play.changed == 0


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/add_client.yml"])
def test_who_is_there_can_be_deployed_to(control: Control, away: Path, playbook: str) -> None:
    play = control.play(playbook, "-i", str(away), "--limit", "node1")
    assert play.code == 0, play.out
    assert _LEFT in play.text
    assert _is_as_it_was(play), play.out


def test_what_is_due_is_renewed_for_those_that_are_there(
    node: Node, control: Control, away: Path
) -> None:
    crl = control.pki / "crl.pem"
    crl.unlink()
    play = control.play("playbooks/renew.yml", "-i", str(away))
    assert play.code == 4, play.out  # some host could not be reached
    assert _LEFT in play.text
    assert "node1 : ok=" in play.text
    assert "failed=1" not in play.text
    assert node.read("/etc/sealrelay/coordinator/crl.pem").strip() == crl.read_text().strip()


def test_a_certificate_is_replaced_beside_a_host_that_is_away(
    node: Node, control: Control, away: Path
) -> None:
    before = node.read(f"{CLIENT1}/cert.pem")
    play = control.play(
        "playbooks/rotate_certificates.yml", "-i", str(away), variables={"name": "client1"}
    )
    assert play.code == 4, play.out
    assert "failed=1" not in play.text
    assert node.read(f"{CLIENT1}/cert.pem") != before
    absent = control.play(
        "playbooks/rotate_certificates.yml", "-i", str(away), variables={"name": "client9"}
    )
    assert absent.code != 0
    assert "of hosts that can't be reached, away." in absent.text


def test_a_host_that_is_needed_is_named(node: Node, control: Control, away: Path) -> None:
    away.write_text(away.read_text().replace("clients:", "servers:"))
    play = control.play("playbooks/failover_check.yml", "-i", str(away))
    assert play.code != 0
    assert "Nothing was stopped, since the deployment is not healthy" in play.text
    assert "sealrelay-server@5001 on away" in play.text
    assert node.is_active("sealrelay-server@5001")
