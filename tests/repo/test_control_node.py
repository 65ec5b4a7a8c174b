"""What runs on the control node runs as the user who runs the playbook, with Ansible's Python.

``ansible_become`` of an inventory beats the keyword ``become``, and ``ansible_python_interpreter``
names a Python of the hosts: the tasks' own variables beat both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repo.conftest import REPOSITORY, run_playbook, tracked_files
from tests.repo.templates import list_tasks

_FILES = tracked_files(
    "site.yml", "playbooks/*.yml", "roles/*/tasks/*.yml", "roles/*/handlers/*.yml"
)
_VARIABLES = {
    "ansible_become": False,
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
}


def find_faults(text: str) -> list[str]:
    """The names of the tasks, blocks and plays of the control node that an inventory could turn."""
    return [
        str(task.get("name"))
        for task in list_tasks(yaml.safe_load(text))
        if _is_local(task)
        and (task.get("become") is not False or not _VARIABLES.items() <= _vars(task).items())
    ]


def _is_local(task: dict[str, Any]) -> bool:
    return "localhost" in (task.get("delegate_to"), task.get("hosts"), task.get("local_action"))


def _vars(task: dict[str, Any]) -> dict[str, Any]:
    variables: dict[str, Any] = task.get("vars", {})
    return variables


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_runs_here_runs_as_the_caller(path: Path) -> None:
    assert find_faults(path.read_text()) == []


_LOCAL = """
- name: Look
  ansible.builtin.command: id
  delegate_to: localhost
"""


@pytest.mark.parametrize(
    ("more", "faults"),
    [
        ("", ["Look"]),
        ("  become: false\n", ["Look"]),
        ("  become: false\n  vars:\n    ansible_become: false\n", ["Look"]),
        (
            f"  become: false\n  vars: {json.dumps(_VARIABLES)}\n",
            [],
        ),
    ],
)
def test_the_search_finds_what_an_inventory_could_turn(more: str, faults: list[str]) -> None:
    assert find_faults(_LOCAL + more) == faults
    assert find_faults(f"- name: Play\n  hosts: all\n  tasks:{_indented(_LOCAL + more)}") == faults


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ").rstrip(" ")


_PLAY = """
- name: Keep a CA on the control node
  hosts: all
  become: true
  gather_facts: false
  roles:
    - role: ca
"""
_HOSTS = """
all:
  hosts:
    node1:
  vars:
    ansible_connection: local
    ansible_become: true
    ansible_become_exe: {sudo}
    ansible_python_interpreter: /nonexistent/python
    ca_passphrase: a secret of ours
"""


def test_a_ca_is_made_by_the_caller_though_the_inventory_says_become(tmp_path: Path) -> None:
    called = tmp_path / "called"
    sudo = tmp_path / "sudo"
    sudo.write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    sudo.chmod(0o755)
    (tmp_path / "hosts.yml").write_text(_HOSTS.format(sudo=sudo))
    (tmp_path / "play.yml").write_text(_PLAY)
    roles = str(REPOSITORY / "roles")
    done = run_playbook(tmp_path, "-i", "hosts.yml", "play.yml", ANSIBLE_ROLES_PATH=roles)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "pki" / "ca.key").stat().st_uid == os.getuid()
    assert not called.exists()
