"""A secret is used as it is meant, however it was given."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from jinja2 import nodes

from tests.repo.conftest import (
    REPOSITORY,
    ROLES,
    load_module,
    role_specs,
    run_playbook,
    tracked_files,
)
from tests.repo.templates import list_templates, parse_template

pytestmark = pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")

_SECRETS = {"ca_passphrase", "server_store_password", "postgresql_password"}
_USERS = {"use_secret", "find_secret_fault", "find_passphrase"}
_FILES = tracked_files("site.yml", "playbooks/*.yml", "roles/*.yml")
_TEMPLATES = tracked_files("roles/*/templates/*.j2")


_FILTERS = load_module("plugins/filter/secrets.py").FilterModule().filters()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("secret\r\n\n", "secret"),
        (" sec\nret \n", " sec\nret "),
        ("", ""),
        (None, ""),
        (12345678, "12345678"),
    ],
)
def test_newlines_at_the_end_are_no_part_of_a_secret(given: Any, used: str) -> None:
    assert _FILTERS["use_secret"](given) == used


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (12345678, "a number"),
        (1.5, "a number"),
        (True, "a boolean"),
        (datetime.date(2026, 11, 30), "a date"),
        (["secret"], "a list"),
        ({"secret": 1}, "a dictionary"),
    ],
)
def test_what_yaml_turned_into_something_else_is_refused(given: Any, kind: str) -> None:
    fault = _FILTERS["find_secret_fault"](given, "ca_passphrase")
    assert f"ca_passphrase {'as' if 'YAML' in fault else 'is'} {kind}" in fault
    assert "secret" not in fault
    assert "1234" not in fault


@pytest.mark.parametrize("given", ["12345678", "", None])
def test_text_may_be_a_secret(given: Any) -> None:
    assert _FILTERS["find_secret_fault"](given, "ca_passphrase") == ""


@pytest.mark.parametrize(
    ("made_with", "given", "found"),
    [
        ("open sesame", "open sesame\n", "open sesame"),
        ("open sesame\n", "open sesame\n", "open sesame\n"),
        ("open sesame\n", "open sesame", "open sesame"),
        ("something else", "open sesame\n", "open sesame"),
        (None, "open sesame\n", "open sesame"),
    ],
)
def test_a_key_that_was_made_with_the_newline_still_opens(
    made_with: str | None, given: str, found: str, tmp_path: Path
) -> None:
    if made_with:
        encryption = BestAvailableEncryption(made_with.encode())
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (tmp_path / "ca.key").write_bytes(pem)
    assert _FILTERS["find_passphrase"](str(tmp_path), given) == found


def _list_secrets_of_specs() -> Iterator[str]:
    for role in ROLES:
        for spec in role_specs(role).values():
            for option in spec.get("options", {}):
                if option.endswith(("passphrase", "password", "secret", "token")):
                    yield option


def test_every_secret_of_the_specifications_is_known_here() -> None:
    assert set(_list_secrets_of_specs()) == _SECRETS


def find_raw_uses(text: str) -> list[str]:
    """The secrets that a template uses as they are given."""
    return list(_find_raw(parse_template(text), turned=False))


def _find_raw(node: nodes.Node, *, turned: bool) -> Iterator[str]:
    if isinstance(node, nodes.Name) and node.name in _SECRETS and not turned:
        yield node.name
    turns = isinstance(node, nodes.Filter) and (
        node.name in _USERS or (turned and node.name == "default")
    )
    for child in node.iter_child_nodes():
        yield from _find_raw(child, turned=turns)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_playbook_or_role_uses_a_secret_as_it_is_given(path: Path) -> None:
    if path.parent.name in ("defaults", "meta"):
        pytest.skip("they hand it on")
    texts = list_templates(yaml.safe_load(path.read_text()))
    assert [name for text in texts for name in find_raw_uses(text)] == []


@pytest.mark.parametrize("path", _TEMPLATES, ids=lambda path: path.name)
def test_no_template_uses_a_secret_as_it_is_given(path: Path) -> None:
    assert find_raw_uses(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("{{ ca_passphrase }}", ["ca_passphrase"]),
        ("{{ ca_passphrase | length }}", ["ca_passphrase"]),
        ("{{ ca_passphrase | use_secret | length }}", []),
        ("{{ ca_dir | find_passphrase(ca_passphrase) }}", []),
        ("{{ server_store_password | default('') | use_secret }}", []),
        ("{{ server_store_password | default('') }}", ["server_store_password"]),
    ],
)
def test_the_search_finds_raw_uses(text: str, raw: list[str]) -> None:
    assert find_raw_uses(text) == raw


_PLAY = """
- name: Keep a CA on the control node
  hosts: all
  gather_facts: false
  tasks:
    - name: Check the CA
      ansible.builtin.include_role:
        name: ca
        tasks_from: preflight

    - name: Make the CA
      ansible.builtin.include_role:
        name: ca
"""


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("ca_passphrase: open sesame", ""),
        ("ca_passphrase: 12345678", "YAML reads ca_passphrase as a number"),
        ("ca_passphrase: another one", "can't be opened with this passphrase"),
        ("ca_passphrase: ''", "is missing; give the one that it was made with"),
    ],
)
def test_a_ca_that_was_made_with_the_newline_of_a_file_opens_without(
    second: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "play.yml").write_text(_PLAY)
    (tmp_path / "first.yml").write_text("ca_passphrase: |\n  open sesame\n")
    (tmp_path / "second.yml").write_text(second)
    (tmp_path / "hosts").write_text("node1 ansible_connection=local\n")
    roles = str(REPOSITORY / "roles")
    made = run_playbook(
        tmp_path, "-i", "hosts", "-e", "@first.yml", "play.yml", ANSIBLE_ROLES_PATH=roles
    )
    assert made.returncode == 0, made.stdout + made.stderr
    again = run_playbook(
        tmp_path, "-i", "hosts", "-e", "@second.yml", "play.yml", ANSIBLE_ROLES_PATH=roles
    )
    if said:
        assert said in " ".join(again.stdout.split())
        assert again.returncode == 2
    else:
        assert again.returncode == 0, again.stdout + again.stderr
        assert "changed=0" in again.stdout
