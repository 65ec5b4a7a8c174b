"""Playbooks and roles read no variable whose name an inventory may use for something else.

Cloud inventories set ``name``, ``role``, ``location``, ``status`` … on each host, and where the
operator gave no value, the host's is taken.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jinja2 import meta, nodes

from tests.repo.conftest import REPOSITORY, ROLES, run_playbook, tracked_files
from tests.repo.templates import list_templates, parse_template

_PLAY = """
- name: Ask for the operator's answers
  hosts: all
  gather_facts: false
  connection: local
  tasks:
    - name: Ask
      ansible.builtin.debug:
        msg: "{{ lookup('extra_var', 'role', default='client') ~ '/' ~ __name ~ '.' }}"
      vars:
        __name: "{{ lookup('extra_var', 'name') }}"
"""

# The regular expressions in the templates have such.
pytestmark = pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")

_ANSIBLES_OWN = {
    "ansible_check_mode",
    "group_names",
    "groups",
    "hostvars",
    "inventory_dir",
    "inventory_hostname",
    "item",
    "lookup",
    "now",
    "omit",
    "playbook_dir",
    "query",
    "role_path",
}
_OURS = {"revoke_replaced", "check_leaves_of_some"}
"""They belong to no role, and their names say what they are for."""
_PREFIXES = ("_", "ansible_", "sealrelay_", "client_", *(f"{role}_" for role in ROLES))
_FILES = tracked_files("site.yml", "playbooks/*.yml", "roles/*.yml")
_TEMPLATES = tracked_files("roles/*/templates/*.j2")


def _read_undeclared(text: str) -> set[str]:
    tree = parse_template(text)
    # Set in one branch and used in another counts as undeclared for Jinja.
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    return meta.find_undeclared_variables(tree) - own


def _is_generic(name: str) -> bool:
    return not name.startswith(_PREFIXES) and name not in _ANSIBLES_OWN | _OURS


def find_generic(text: str) -> set[str]:
    """The names in a playbook's or a role's file that might be somebody else's."""
    names: set[str] = set()
    for template in list_templates(yaml.safe_load(text)):
        names |= _read_undeclared(template)
    return set(filter(_is_generic, names))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_generic_name_is_looked_up(path: Path) -> None:
    assert find_generic(path.read_text()) == set()


@pytest.mark.parametrize("path", _TEMPLATES, ids=lambda path: path.name)
def test_no_template_asks_for_a_generic_name(path: Path) -> None:
    assert set(filter(_is_generic, _read_undeclared(path.read_text()))) == set()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("- when: name is defined", {"name"}),
        ("- msg: \"{{ role | default('client') }}\"", {"role"}),
        (
            "- ansible.builtin.assert:\n    that: [server_ports is defined, confirm | bool]",
            {"confirm"},
        ),
        ("- msg: \"{{ lookup('extra_var', 'name') }}\"", set()),
        ('- msg: "{% for name in server_ports %}{{ name }}{% endfor %}"', set()),
    ],
)
def test_the_search_finds_generic_names(text: str, names: set[str]) -> None:
    assert find_generic(text) == names


@pytest.mark.parametrize(
    ("arguments", "heard"),
    [((), "client/."), (("-e", "name=client1"), "client/client1.")],
)
def test_the_operator_answers_and_not_a_host(
    arguments: tuple[str, ...], heard: str, tmp_path: Path
) -> None:
    (tmp_path / "play.yml").write_text(_PLAY)
    (tmp_path / "hosts").write_text("vm-1 name=vm-1 role=relay ansible_connection=local\n")
    done = run_playbook(tmp_path, "-i", "hosts", *arguments, "play.yml")
    assert f"msg: {heard}" in done.stdout, done.stdout + done.stderr
