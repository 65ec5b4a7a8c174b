"""Payload keys are rotated under load, in stages that an interrupted run leaves usable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.peers import CLIENT1, read_keys
from tests.support.loads import Load
from tests.support.node import Control, Node, Play, find_secrets

_PLAYBOOK = "playbooks/rotate_payload_keys.yml"
_KEYS, _NEXT = f"{CLIENT1}/payload.keys", f"{CLIENT1}/payload.keys.next"
_KEYRING = "/var/lib/sealrelay/keyrings/client1.keys"
_RETIRED = "/var/lib/sealrelay/keyrings/client1.retired"
_NOW = {"payload_keys_retire_now": True}
_ONLY_RETIRE = {"payload_keys_only_retire": True}


@pytest.fixture(autouse=True)
def tidy(node: Node, control: Control) -> Iterator[None]:
    """Whatever a test leaves half done is finished, and one key is left."""
    yield
    if node.try_run("test", "-e", _NEXT).returncode == 0 or len(keys_in(node, _KEYRING)) > 1:
        play = rotate(control, **_NOW)
        assert play.code == 0, play.out


def rotate(control: Control, *arguments: str, **variables: object) -> Play:
    return control.play(_PLAYBOOK, *arguments, variables=variables)


def keys_in(node: Node, path: str) -> list[str]:
    return read_keys(node.read(path))


def exists(node: Node, path: str) -> bool:
    return node.try_run("test", "-e", path).returncode == 0


def access(node: Node, path: str) -> str:
    return node.run("stat", "-c", "%a %U %G", path).strip()


@pytest.mark.usefixtures("settled")
def test_rotation_under_load_loses_doubles_and_refuses_nothing(
    node: Node, control: Control, scratch: str, secrets: list[str]
) -> None:
    (old,) = keys_in(node, _KEYS)
    modes = [access(node, path) for path in (_KEYS, _KEYRING)]
    with Load(node, scratch) as load:
        sent = node.send("sealed with the old key")[0]["message_id"]
        first = rotate(control, "-vvv", name="client1")
        assert first.code == 0, first.out
        (new,) = keys_in(node, _KEYS)
        assert new != old
        assert keys_in(node, _KEYRING) == [new, old], "the old key opens what is under way"
        assert "client1: superseded 2" in first.text
        assert not exists(node, _NEXT)
        assert not find_secrets(first.out, [*secrets, new])
        node.send("sealed with the new key")

        due = rotate(control, **_ONLY_RETIRE)
        assert (due.code, due.changed) == (0, 0), f"nothing is due yet\n{due.out}"
        retired = rotate(control, **_ONLY_RETIRE, **_NOW)
        assert retired.code == 0, retired.out
        assert keys_in(node, _KEYRING) == [new]
        assert not exists(node, _RETIRED)
        assert [access(node, path) for path in (_KEYS, _KEYRING)] == modes
    load.assert_all_well()
    assert "sealed with the old key" in node.run("sealrelay", "messages", "show", sent)
    again = rotate(control, **_ONLY_RETIRE)
    assert (again.code, again.changed) == (0, 0), again.out


@pytest.mark.long
@pytest.mark.usefixtures("settled")
def test_interrupted_rotation_is_usable_and_is_finished_by_the_next_run(
    node: Node, control: Control
) -> None:
    """What an interrupted run leaves is made by hand here."""
    (old,) = keys_in(node, _KEYS)
    node.run("sealrelay", "keygen", "--out", _NEXT)
    node.shell(f"(cat {_KEYS}; echo '# next'; cat {_NEXT}) | sealrelay keyring merge {_KEYRING}")
    (following,) = keys_in(node, _NEXT)
    node.send("in the middle of a rotation")
    deployed = control.deploy("--limit", node.name)
    assert (deployed.code, deployed.changed) == (0, 0), f"it has nothing to undo\n{deployed.out}"
    rehearsal = rotate(control, "--check", "--diff")
    assert rehearsal.code == 0, rehearsal.out
    assert keys_in(node, _KEYS) == [old]
    assert keys_in(node, _KEYRING) == [old, following]

    finished = rotate(control, name="client1")
    assert finished.code == 0, finished.out
    assert keys_in(node, _KEYS) == [following], "the pending key is used, not another one"
    assert keys_in(node, _KEYRING) == [following, old]
    node.send("sealed with the next key")

    # Killed between the files of a retirement: the key is in both. By now it is long superseded.
    node.shell(f"tail -n 1 {_KEYRING} >{_RETIRED}; chgrp sealrelay-server {_RETIRED}")
    node.shell(
        f"chmod 0640 {_RETIRED}; sed -i 's/^# superseded 20../# superseded 2001/' {_KEYRING}"
    )
    renewed = control.play("playbooks/renew.yml")
    assert renewed.code == 0, renewed.out
    assert keys_in(node, _KEYRING) == [following], "renew.yml retires what is due"
    assert not exists(node, _RETIRED)


def test_what_a_rotation_needs_is_asked_for_before_anything_changes(
    node: Node, control: Control
) -> None:
    before = node.read(_KEYRING)
    nobody = rotate(control, name="client9")
    assert nobody.code != 0
    assert "The inventory has no client 'client9'; it has client1, client2." in nobody.text
    assert node.read(_KEYRING) == before
    assert not exists(node, _NEXT)
