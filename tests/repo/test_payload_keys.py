"""The role payload_keys where there are several servers' hosts; here they are folders."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sealrelay.keyrings import Key, format_keys, read_keys
from sealrelay.seal import generate_keyring
from tests.repo.conftest import run_playbook

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="keyrings are root's")

_SINCE = 1_700_000_000


def make_key() -> str:
    return generate_keyring().split("\n")[1]


A, B, C = (make_key() for _ in range(3))


@dataclass
class Run:
    code: int
    out: str

    @property
    def text(self) -> str:
        return " ".join(self.out.split())


class World:
    """Two servers' hosts and one of clients, all on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / "clients" / "client1" / "payload.keys"
        self.next = self.own.with_name("payload.keys.next")
        self.own.parent.mkdir(parents=True)
        program = folder / "release" / "bin" / "sealrelay"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sealrelay "$@"\n')
        program.chmod(0o755)
        self.keyrings = {}
        for host in ("server1", "server2"):
            (folder / host).mkdir()
            self.keyrings[host] = folder / host / "client1.keys"
        self.hosts: dict[str, dict[str, dict[str, Any]]] = {
            "servers": {
                host: {"payload_keys_keyrings": str(path.parent)}
                for host, path in self.keyrings.items()
            },
            "clients": {"home": {}},
        }

    def play(self, group: str, *parts: str, **of_servers: Any) -> Run:
        """Run parts of the role on a group, or a host of it."""
        tasks = [
            {"ansible.builtin.import_role": {"name": "payload_keys", "tasks_from": part}}
            for part in parts
        ]
        play = [{"hosts": group, "gather_facts": False, "tasks": tasks}]
        inventory = {
            "all": {
                "vars": {
                    "ansible_connection": "local",
                    "ansible_python_interpreter": sys.executable,
                    "client_names": ["client1"],
                },
                "children": {
                    "servers": {"hosts": self.hosts["servers"], "vars": of_servers},
                    "clients": {"hosts": self.hosts["clients"]},
                },
            }
        }
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        more = {
            "_payload_keys_dir": str(self.folder / "clients"),
            "runtime_release_dir": str(self.folder / "release"),
            "payload_keys_server_group": "root",
        }
        extra = yaml.safe_dump(more, default_flow_style=True, width=9999)
        done = run_playbook(self.folder, "-i", "hosts.yml", "-e", extra, "play.yml")
        for key in (A, B, C):
            assert key not in done.stdout + done.stderr
        return Run(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_host_that_is_new_learns_older_keys_from_another_one(world: World) -> None:
    """The client has none but the one that it seals with, and tokens under way may be older."""
    world.own.write_text(format_keys([Key(B)]))
    world.next.write_text(format_keys([Key(C)]))
    known = [Key(A), Key(B, is_next=True), Key(make_key(), _SINCE)]
    world.keyrings["server1"].write_text(format_keys(known))
    run = world.play("server2", "collect")
    assert run.code == 0, run.out
    newest, following, *older = read_keys(world.keyrings["server2"])
    assert (newest, following) == (Key(B), Key(C, is_next=True))
    assert [key.text for key in older] == [A, known[2].text]
    assert older[1].superseded_at == _SINCE, "since when is told, too"
    assert older[0].superseded_at is not None
    assert read_keys(world.keyrings["server1"]) == known
    again = world.play("server2", "collect")
    assert "changed=0" in again.out, again.out


def test_keyring_that_cannot_be_read_is_named(world: World) -> None:
    world.own.write_text(format_keys([Key(B)]))
    world.keyrings["server1"].write_text("something else\n")
    run = world.play("server1", "collect")
    assert run.code != 0
    assert f"{world.keyrings['server1']}: not a keyring" in run.text


def learned_of(path: Path) -> dict[str, str]:
    return {"client1": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_client_switches_when_every_server_knows_this_very_key(world: World) -> None:
    world.own.write_text(format_keys([Key(A)]))
    world.next.write_text(format_keys([Key(B)]))
    inode = world.next.stat().st_ino
    run = world.play("clients", "switch", payload_keys_learned=learned_of(world.next))
    assert run.code == 0, run.out
    assert read_keys(world.own) == [Key(B)]
    assert world.own.stat().st_ino == inode, "in one step, as it was made"
    again = world.play("clients", "switch", payload_keys_learned={})
    assert again.code == 0
    assert "changed=0" in again.out


def test_client_stays_with_its_key_when_a_server_does_not_know_the_next(world: World) -> None:
    world.own.write_text(format_keys([Key(A)]))
    world.next.write_text(format_keys([Key(C)]))
    learned = learned_of(world.next)
    world.next.write_text(format_keys([Key(B)]))
    for known in ({}, learned):
        run = world.play("clients", "switch", payload_keys_learned=known)
        assert run.code != 0
        assert "server1, server2 doesn't know the next key of client1 yet" in run.text
        assert read_keys(world.own) == [Key(A)]
        assert read_keys(world.next) == [Key(B)]


_AWAY = {
    "ansible_connection": "ssh",
    "ansible_host": "127.0.0.1",
    "ansible_port": 1,  # nobody listens there
    "ansible_ssh_common_args": "-o BatchMode=yes -o ConnectTimeout=5",
}


def test_a_clients_host_that_is_away_is_left_for_the_next_time(world: World) -> None:
    world.own.write_text(format_keys([Key(B)]))
    world.hosts["clients"]["away"] = {"client_names": ["client9"], **_AWAY}
    there = world.keyrings["server1"].with_name("client9.keys")
    there.write_text(format_keys([Key(A)]))
    run = world.play("server1", "collect")
    assert run.code == 0, run.out
    assert "away can't be reached. What server1 has of the keys of client9 stays" in run.text
    assert read_keys(world.keyrings["server1"]) == [Key(B)]
    assert read_keys(there) == [Key(A)]


def test_a_key_of_an_absent_client_is_not_retired(world: World) -> None:
    """It may have come back to one that the servers take for superseded."""
    world.own.write_text(format_keys([Key(B)]))
    world.hosts["clients"]["away"] = {"client_names": ["client9"], **_AWAY}
    long_ago = [Key(B), Key(A, _SINCE)]
    there = world.keyrings["server1"].with_name("client9.keys")
    for path in (world.keyrings["server1"], there):
        path.write_text(format_keys(long_ago))
    world.play("server1", "collect", "retire")  # then it waits for services, and there are none
    assert read_keys(world.keyrings["server1"]) == [Key(B)]
    assert read_keys(there) == long_ago


def test_a_new_servers_host_needs_one_that_knows_older_keys(world: World) -> None:
    world.own.write_text(format_keys([Key(B)]))
    world.hosts["servers"]["server1"] |= _AWAY
    run = world.play("server2", "collect")
    assert run.code != 0
    assert "server1 can't be reached, and server2 has no keyrings yet" in run.text
    assert not world.keyrings["server2"].exists()

    world.keyrings["server2"].with_name("client8.keys").write_text(format_keys([Key(A)]))
    assert world.play("server2", "collect").code == 0, "only the client is new"
    assert read_keys(world.keyrings["server2"]) == [Key(B)]
