"""Roles say what they take: defaults, specs and templates agree with each other and the app."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sealrelay.config import (
    ClientSettings,
    CoordinatorSettings,
    OperatorSettings,
    ServerSettings,
    Settings,
)
from tests.repo.conftest import (
    REPOSITORY,
    ROLES,
    read_yaml,
    role_defaults,
    role_specs,
    run_playbook,
)

SHARED = {"sealrelay_trust_domain"}


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_argument_specs_for_every_entry_point(role: str) -> None:
    specs = role_specs(role)
    assert specs, "meta/argument_specs.yml is missing"
    included = {
        match
        for source in (REPOSITORY / "roles").rglob("*.yml")
        for match in re.findall(rf"name: {role}\n\s+tasks_from: (\w+)", source.read_text())
    }
    included |= {
        match
        for source in (REPOSITORY / "playbooks").glob("*.yml")
        for match in re.findall(rf"name: {role}\n\s+tasks_from: (\w+)", source.read_text())
    }
    assert included <= set(specs)
    for entry_point, spec in specs.items():
        assert spec["short_description"]
        assert (REPOSITORY / "roles" / role / "tasks" / f"{entry_point}.yml").exists()


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specs_agree(role: str) -> None:
    defaults = role_defaults(role)
    described: set[str] = set()
    for entry_point, spec in role_specs(role).items():
        for name, option in (spec.get("options") or {}).items():
            described.add(name)
            assert option.get("description"), f"{entry_point}: {name} is not described"
            if "default" in option:
                assert name in defaults, f"{entry_point}: {name} has no default in defaults/"
                assert option["default"] == defaults[name], f"{entry_point}: {name}"
    assert set(defaults) == {name for name in described if name in defaults}, "undescribed defaults"


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_name_of_their_role(role: str) -> None:
    described = {name for spec in role_specs(role).values() for name in spec.get("options") or {}}
    for name in set(role_defaults(role)) | described:
        assert name.startswith(f"{role}_") or name in SHARED, name
    for name in read_yaml(REPOSITORY / "roles" / role / "vars" / "main.yml") or {}:
        assert name.startswith(f"_{role}_"), name


def render(tmp_path: Path, role: str, template: str, **more: Any) -> str:
    """Render a role's template with Ansible itself, from the role's defaults and constants."""
    variables = {
        **role_defaults(role),
        **(read_yaml(REPOSITORY / "roles" / role / "vars" / "main.yml") or {}),
        "role_path": str(REPOSITORY / "roles" / role),
        **more,
    }
    out = tmp_path / "out"
    play = [
        {
            "hosts": "node1",
            "gather_facts": False,
            "connection": "local",
            "vars": variables,
            "tasks": [
                {
                    "ansible.builtin.template": {
                        "src": str(REPOSITORY / "roles" / role / "templates" / template),
                        "dest": str(out),
                        "mode": "0600",
                    }
                }
            ],
        }
    ]
    playbook, inventory = tmp_path / "play.yml", tmp_path / "hosts.yml"
    playbook.write_text(yaml.safe_dump(play))
    groups: dict[str, Any] = {
        group: {"hosts": {"node1": {"ansible_python_interpreter": sys.executable}}}
        for group in ("servers", "coordinators", "clients")
    }
    inventory.write_text(yaml.safe_dump({"all": {"children": groups}}))
    run = run_playbook(tmp_path, "-i", inventory, playbook)
    assert run.returncode == 0, run.stdout + run.stderr
    return out.read_text()


@pytest.mark.parametrize(
    ("role", "kind", "item"),
    [
        ("server", ServerSettings, 5001),
        ("coordinator", CoordinatorSettings, None),
        ("client", ClientSettings, "client1"),
        ("operator", OperatorSettings, None),
    ],
)
def test_settings_template_is_what_the_app_reads(
    tmp_path: Path, role: str, kind: type[Settings], item: object
) -> None:
    text = render(tmp_path, role, f"{role}.toml.j2", item=item)
    settings = msgspec.toml.decode(text, type=Settings)
    assert isinstance(settings, kind)
    written = set(re.findall(r"^(\w+) = ", text.split("\n[")[0], re.MULTILINE))
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert written - {"service"} == known - {"tls", "servers"}, "a setting that cannot be set"


@pytest.mark.parametrize(
    ("role", "kind"),
    [("server", ServerSettings), ("coordinator", CoordinatorSettings), ("client", ClientSettings)],
)
def test_role_defaults_are_the_apps_defaults(role: str, kind: type[Settings]) -> None:
    defaults = role_defaults(role)
    for field in msgspec.structs.fields(kind):
        if field.default is not msgspec.NODEFAULT and f"{role}_{field.name}" in defaults:
            assert defaults[f"{role}_{field.name}"] == field.default, field.name


UNITS = [
    (path.parts[-3], path.name)
    for path in sorted((REPOSITORY / "roles").glob("*/templates/*.service.j2"))
]


@pytest.mark.parametrize(("role", "template"), UNITS)
def test_units_run_sandboxed_and_prove_that_they_answer(
    tmp_path: Path, role: str, template: str
) -> None:
    unit = render(tmp_path, role, template)
    sandbox = (REPOSITORY / "roles" / "runtime" / "files" / "sandbox.conf").read_text()
    assert "\nProtectSystem=strict\n" in sandbox
    assert unit.count(sandbox) == 1, "each unit has the one sandbox"
    assert "\nTemporaryFileSystem=/etc/sealrelay:ro\n" in unit
    assert re.search(r"^(User=sealrelay-|DynamicUser=yes$)", unit, re.MULTILINE)
    if "\nType=oneshot\n" not in unit:
        assert "\nRestart=on-failure\n" in unit
        assert "\nType=notify\n" in unit
        assert "NotifyAccess=" not in unit, "no process but the master speaks for the service"


@pytest.mark.parametrize(("role", "template"), [unit for unit in UNITS if unit[0] != "firewall"])
def test_messages_come_before_other_work_of_the_host(
    tmp_path: Path, role: str, template: str
) -> None:
    unit = render(tmp_path, role, template)
    service = unit.partition("[Service]")[2].partition("[Install]")[0]
    for line in ("CPUWeight=1000", "Nice=-10"):
        assert f"\n{line}\n" in service


@pytest.mark.parametrize(("role", "template"), [unit for unit in UNITS if unit[0] != "firewall"])
def test_journald_keeps_every_line_of_a_unit(tmp_path: Path, role: str, template: str) -> None:
    unit = render(tmp_path, role, template)
    service = unit.partition("[Service]")[2].partition("[Install]")[0]
    limits = dict(re.findall(r"^LogRateLimit(\w+)=(.+)$", service, re.MULTILINE))
    # 0 would be journald's own limit: systemd passes on no interval but one above 0.
    assert int(limits["IntervalSec"]) > 0
    lines_a_second = int(limits["Burst"]) / int(limits["IntervalSec"])
    assert lines_a_second >= 1_000_000, "far above what a service can write"


def test_there_are_units() -> None:
    assert len(UNITS) >= 3


def test_ports_are_the_same_wherever_they_are_told() -> None:
    for inventory in ("local", "lab", "postgresql"):
        variables = read_yaml(REPOSITORY / "inventory" / inventory / "group_vars" / "all.yml")
        assert variables["server_ports"] == role_defaults("server")["server_ports"] == [5001, 5002]
        assert variables["coordinator_port"] == role_defaults("coordinator")["coordinator_port"]
