"""What every task needs is loaded once for a whole run, not once for each task."""

from __future__ import annotations

from pathlib import Path

from tests.repo.conftest import run_playbook

_FILTER = """
import os
with open({record!r}, "a") as record:
    record.write(f"{{os.getpid()}}\\n")

class FilterModule:
    def filters(self):
        return {{"as_it_is": lambda value: value}}
"""
_PLAY = """
- name: Use a filter in several tasks
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Use it
      ansible.builtin.assert:
        that: "'word' | as_it_is == 'word'"
        quiet: true
    - name: Use it again
      ansible.builtin.assert:
        that: "'text' | as_it_is == 'text'"
        quiet: true
    - name: Skip one
      ansible.builtin.debug:
        msg: nothing
      when: not (true | as_it_is)
"""


def test_files_of_filters_are_run_once_in_a_run(tmp_path: Path) -> None:
    record, filters, play = tmp_path / "record", tmp_path / "filters", tmp_path / "play.yml"
    filters.mkdir()
    (filters / "slow.py").write_text(_FILTER.format(record=str(record)))
    play.write_text(_PLAY)
    done = run_playbook(tmp_path, "-i", "localhost,", play, ANSIBLE_FILTER_PLUGINS=str(filters))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(record.read_text().splitlines()) == 1, "tasks loaded the filters anew"
