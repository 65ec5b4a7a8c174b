"""Every option works as text: ``-e key=value`` is always text, and so is much of an INI inventory.

Where a role uses an option that is no text, a filter says which type is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from jinja2 import nodes

from sealrelay.config import ClientSettings, CoordinatorSettings, ServerSettings, Settings
from tests.repo.conftest import REPOSITORY, ROLES, load_module, role_specs, tracked_files
from tests.repo.templates import list_templates, parse_template

# The regular expressions in the templates have such.
pytestmark = pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")

_KINDS = {"bool": "bool", "int": "int", "float": "float", "list": "as_list"}
"""Type of an option → the filter that says so."""
_FILES = tracked_files("site.yml", "playbooks/*.yml", "roles/*.yml")
_TEMPLATES = tracked_files("roles/*/templates/*.j2")
_JUDGED_ELSEWHERE = {"coordinator_port"}
"""Preflight has a sentence of its own for all ports of a host."""
_LATER = {"failover_check", "preflight", "uninstall"}
"""Nothing is deployed with the options of these roles."""


_LOOKUP = load_module("plugins/lookup/settings.py")


def _list_options() -> Iterator[tuple[str, str]]:
    for role in ROLES:
        for spec in role_specs(role).values():
            for name, option in spec.get("options", {}).items():
                # Nobody writes dictionaries as text.
                if option["type"] in _KINDS and option.get("elements") != "dict":
                    yield name, _KINDS[option["type"]]


_OPTIONS = dict(_list_options())
"""Name → the filter that its uses need."""


def find_untyped(text: str) -> list[str]:
    """The options that a template uses as whatever type they were given as."""
    return list(_find(parse_template(text), ""))


def _find(node: nodes.Node, filter_around: str) -> Iterator[str]:
    """The options below a node, which that filter gets, or none."""
    name = _option_of(node)
    if name and filter_around != _OPTIONS[name]:
        yield name
    around = ""
    if isinstance(node, nodes.Filter):
        around = filter_around if node.name == "default" else node.name
        if node.name == "map" and node.args and isinstance(node.args[0], nodes.Const):
            around = str(node.args[0].value)
        attribute = _attribute_of(node)
        if attribute and filter_around != _OPTIONS[attribute]:
            yield attribute
    for child in node.iter_child_nodes():
        yield from _find(child, around)


def _option_of(node: nodes.Node) -> str:
    """The option that a node reads, of this host or of another."""
    name = ""
    if isinstance(node, nodes.Name) and node.ctx == "load":
        name = node.name
    elif isinstance(node, nodes.Getattr):
        name = node.attr
    return name if name in _OPTIONS else ""


def _attribute_of(node: nodes.Filter) -> str:
    """The option that ``map(attribute=...)`` reads of each host."""
    for pair in node.kwargs:
        if pair.key == "attribute" and isinstance(pair.value, nodes.Const):
            return str(pair.value.value) if pair.value.value in _OPTIONS else ""
    return ""


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_roles_and_playbooks_say_which_type_is_meant(path: Path) -> None:
    if path.parent.name == "meta":
        pytest.skip("it has the defaults once more")
    texts = list_templates(yaml.safe_load(path.read_text()))
    assert {text: found for text in texts if (found := find_untyped(text))} == {}


@pytest.mark.parametrize("path", _TEMPLATES, ids=lambda path: path.name)
def test_templates_say_which_type_is_meant(path: Path) -> None:
    assert find_untyped(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{{ coordinator_backlog }}", ["coordinator_backlog"]),
        ("{{ coordinator_backlog | int > 5 }}", []),
        ("{{ coordinator_backlog | default(5) | int }}", []),
        ("{{ coordinator_backlog | int | default(coordinator_lanes) }}", ["coordinator_lanes"]),
        ("{{ server_ports | map('string') }}", ["server_ports"]),
        ("{{ server_ports | as_list('int') | map('string') }}", []),
        ("{{ hostvars[host].server_ports | default([]) }}", ["server_ports"]),
        ("{{ hosts | map(attribute='client_names', default=[]) | flatten }}", ["client_names"]),
        ("{{ hosts | map(attribute='client_names') | map('as_list') | flatten }}", []),
        ("{% if server_log_payloads %}yes{% endif %}", ["server_log_payloads"]),
        ("{% if server_log_payloads | bool %}yes{% endif %}", []),
    ],
)
def test_the_search_finds_untyped_uses(text: str, found: list[str]) -> None:
    assert find_untyped(text) == found


@pytest.mark.parametrize("kind", [ServerSettings, CoordinatorSettings, ClientSettings])
def test_ranges_are_within_what_the_app_takes(kind: type[Settings]) -> None:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        limits = field.type
        if isinstance(limits, msgspec.inspect.IntType | msgspec.inspect.FloatType):
            lowest, highest = _LOOKUP.RANGES[f"{kind.role.value}_{field.name}"]
            assert limits.ge is None or lowest >= limits.ge, field.name
            assert limits.gt is None or lowest > limits.gt, field.name
            assert limits.le is None or highest <= limits.le, field.name


def test_every_number_has_a_range() -> None:
    numbers = {
        name
        for role in set(ROLES) - _LATER
        for spec in role_specs(role).values()
        for name, option in spec.get("options", {}).items()
        if option["type"] in ("int", "float")
    }
    assert numbers == set(_LOOKUP.RANGES) | _JUDGED_ELSEWHERE


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("coordinator_deadline", "soon", "a number"),
        ("coordinator_deadline", 0, "0.001 or more"),
        ("coordinator_deadline", "nan", "0.001 or more"),
        ("coordinator_deadline", "15", ""),
        ("server_workers", "1.5", "a whole number"),
        ("server_workers", 100, "64 or less"),
        ("server_ports", "5001,ssh", "a list; as text, its parts have commas between them"),
        ("server_ports", "5001, 5002", ""),
        ("server_ports", 5001, ""),
        ("server_log_payloads", "perhaps", "true or false"),
        ("server_log_payloads", "y", "true or false"),
        ("server_log_payloads", "yes", ""),
        ("server_log_level", "loud", "one of debug, info, warning, error"),
        ("server_log_level", "debug", ""),
        ("server_store", "anything", ""),
    ],
)
def test_what_can_not_be_meant_is_said(name: str, value: object, wanted: str) -> None:
    assert _LOOKUP.find_wanted(name, value) == wanted


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            {"revoke_replaced": "perhaps"},
            "revoke_replaced is 'perhaps', and has to be true or false",
        ),
        ({"withdraw": "flase"}, "withdraw is 'flase', and has to be true or false."),
        ({"ca_replace": ""}, "ca_replace is '', and has to be true or false."),
        ({"reason": "because"}, "reason is 'because', and has to be one of unspecified, "),
        ({"withdraw": "no", "reason": "superseded", "name": "client1"}, ""),
    ],
)
def test_a_mistyped_answer_is_no_no(said: dict[str, str], fault: str) -> None:
    faults = [found["fault"] for found in _LOOKUP.judge_answers(said) if found["fault"]]
    assert " ".join(faults).startswith(fault)
    assert bool(faults) == bool(fault)
    assert _LOOKUP.judge_answers(said, ["ca_dir"]) == [], "only of those that are asked for"
