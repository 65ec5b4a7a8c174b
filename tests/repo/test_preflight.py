"""What preflight says about the store that an inventory names, as far as no host is needed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repo.conftest import REPOSITORY, load_module, read_yaml, role_defaults, run_playbook

_PREFLIGHT = REPOSITORY / "roles" / "preflight"
_GOOD = [
    "postgresql://sealrelay@db1/sealrelay",
    "postgresql://sealrelay@db1.example.net:5433,db2.example.net/sealrelay?sslmode=verify-full",
    "postgresql://sealrelay@[2001:db8::1]:5432,192.0.2.1/sealrelay",
    "postgresql://db1/sealrelay?application_name=us&passfile=/etc/a/b",
    "postgresql:///sealrelay?host=/run/postgresql",
]
_WITH_PASSWORD = [
    "postgresql://sealrelay:secret@db1/sealrelay",
    "postgresql://sealrelay:sec/ret@db1/sealrelay",
    "postgresql://sealrelay:12/secret@db1/sealrelay",
    "postgresql://sealrelay:secret?x@db1/sealrelay",
    "postgresql://sealrelay:secret#x@db1/sealrelay",
    "postgresql://sealrelay:sec@ret@db1/sealrelay",
    "postgresql://sealrelay:secret",
    "postgresql://db1/sealrelay?password=secret",
    "postgres://db1/sealrelay?password=secret",
    "mysql://root:se/cret@db1/sealrelay",
]


def _play_topology(
    tmp_path: Path,
    hosts: dict[str, dict[str, Any]],
    *arguments: str,
    groups: dict[str, list[str]] | None = None,
) -> str:
    """Run preflight's look at an inventory of such servers; tells what Ansible prints.

    ``groups`` are other ones than servers of all these hosts, and what they need besides.
    """
    play = {
        "hosts": "all",
        "gather_facts": False,
        "connection": "local",
        "vars": {
            **role_defaults("preflight"),
            **read_yaml(_PREFLIGHT / "vars" / "main.yml"),
            "ansible_python_interpreter": sys.executable,
        },
        "tasks": [{"ansible.builtin.include_tasks": str(_PREFLIGHT / "tasks" / "topology.yml")}],
    }
    groups = groups or {"servers": [*hosts], "coordinators": ["relay"], "clients": ["relay"]}
    children = {
        group: {"hosts": {name: hosts.get(name, {}) for name in names}}
        for group, names in groups.items()
    }
    playbook, inventory = tmp_path / "play.yml", tmp_path / "hosts.yml"
    playbook.write_text(yaml.safe_dump([play]))
    inventory.write_text(
        yaml.safe_dump({"all": {"children": children, "vars": {"server_bind": "192.0.2.7"}}})
    )
    return run_playbook(tmp_path, "-i", inventory, playbook, *arguments).stdout


def _told(out: str) -> str:
    """What was printed, as one line and without YAML's way to write an apostrophe."""
    return " ".join(out.split()).replace("''", "'")


def _failed(out: str) -> set[str]:
    recap = out.partition("PLAY RECAP")[2]
    return set(re.findall(r"(?m)^(\w+) .*failed=1", recap))


def test_a_password_in_the_stores_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    hosts = {f"bad{i}": {"server_store": url} for i, url in enumerate(_WITH_PASSWORD)}
    out = _play_topology(tmp_path, hosts)
    assert _failed(out) >= set(hosts)
    for part in ("secret", "cret@", "ret@db", "sec/"):
        assert part not in out, out


def test_a_plain_url_is_taken_and_all_servers_must_have_the_same(tmp_path: Path) -> None:
    hosts = {f"good{i}": {"server_store": url} for i, url in enumerate(_GOOD)}
    out = _told(_play_topology(tmp_path, hosts))
    assert "server_store differs between the servers' hosts" in out
    for refusal in ("server_store begins with", "is not of the form", "holds a password"):
        assert refusal not in out


def test_servers_on_several_hosts_with_sqlite_are_refused(tmp_path: Path) -> None:
    out = _told(_play_topology(tmp_path, {"node1": {}, "node2": {}}))
    assert "The servers are on 2 hosts (node1, node2) with SQLite as their store" in out
    assert "stored twice" in out, "it says why"


def test_servers_that_keep_messages_for_different_times_are_refused(tmp_path: Path) -> None:
    hosts: dict[str, dict[str, Any]] = {
        name: {"server_store": _GOOD[0], "server_retention": retention}
        for name, retention in (("node1", 300_001), ("node2", 300_002))
    }
    out = _told(_play_topology(tmp_path, hosts))
    assert "differ in server_retention (300001, 300002) or server_token_ttl (86400, 86400)" in out


def test_settings_that_other_hosts_can_not_read_are_refused(tmp_path: Path) -> None:
    """Ansible takes them for undefined, and a default takes their place."""
    hidden = {"server_store": "postgresql://u@{{ hostvars[inventory_hostname].address }}/sealrelay"}
    plain = {"server_store": "postgresql://u@{{ address }}/sealrelay"}
    plain["server_bind"] = "{{ ansible_facts['default_ipv4']['address'] }}"
    hosts = {"hidden": {**hidden, "address": "db1"}, "plain": {**plain, "address": "db1"}}
    out = _play_topology(tmp_path, hosts)
    assert _failed(out) >= {"hidden"}
    told = _told(out)
    assert "Other hosts can't read server_store of hidden, and would take the default" in told
    assert "of plain, and would take" not in told


def test_names_that_can_not_work_are_refused_by_their_variable(tmp_path: Path) -> None:
    """Each of these went well in preflight, and failed or misled in the middle of a deployment."""
    long = "a" * 64
    hosts: dict[str, dict[str, Any]] = {
        "bind": {"coordinator_bind": "localhost"},
        "domain": {"sealrelay_trust_domain": "Example.net"},
        # As YAML reads [010, no].
        "clients": {"client_names": [8, False]},
        "a/b": {},
        long: {},
        "own_lb": {"coordinator_hosts": ["{{ hostvars['own_lb'].lb }}"], "lb": "l b"},
        "default": {"server_address": "{{ server_bind }}"},
        "long_domain": {"sealrelay_trust_domain": f"{'a' * 60}.internal"},
    }
    groups = {group: [*hosts] for group in ("servers", "coordinators", "clients")}
    out = _play_topology(tmp_path, hosts, "-e", "server_store=postgresql://db1/a", groups=groups)
    told = _told(out)
    for sentence in (
        "coordinator_bind of bind is 'localhost'; systemd, which holds the port, takes an IPv4",
        "sealrelay_trust_domain of domain is 'Example.net'; a trust domain has",
        "client_names of clients has 8, which is a number for YAML",
        "client_names of clients has False, which is a truth value",
        "server_name_prefix of a/b makes the name 'a/b-5001' of a server",
        f"coordinator_name of {long} makes the name '{long}' of a coordinator",
        "coordinator_hosts of own_lb has 'l b'",
    ):
        assert sentence in told, out
    assert "sealrelay_trust_domain of long_domain" not in told


def test_settings_made_of_facts_are_evaluated_when_there_are_facts(tmp_path: Path) -> None:
    """Also of a host that --limit leaves out, of which others have to know."""
    facts = {
        "server_bind": "{{ ansible_facts['default_ipv4']['address'] }}",
        # Of no subset that preflight itself needs.
        "server_workers": "{{ ansible_facts['processor_vcpus'] }}",
    }
    groups = {"servers": ["away"], "coordinators": ["relay"], "clients": ["relay"]}
    hosts = {"away": facts, "relay": facts}
    for limit in ("all", "relay"):
        out = _play_topology(tmp_path, hosts, "--limit", limit, groups=groups)
        assert "Check every identity, name, URL and SAN" in out
        assert " failed=0" in out
        assert " failed=1" not in out


@pytest.mark.parametrize(
    "settings",
    [
        {"server_bind": "{{ ansible_facts['nope']['address'] }}"},
        {"sealrelay_trust_domain": "{{ trust_domian }}"},
        {"server_ports": [5001, "{{ nope }}"]},
        {"ca_source": "{{ 1 / 0 }}"},
    ],
)
def test_a_setting_without_a_value_is_refused_by_its_name(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """And no default takes its place."""
    (name,) = settings
    groups = {group: ["node1"] for group in ("servers", "coordinators", "clients")}
    out = _play_topology(tmp_path, {"node1": settings}, groups=groups)
    assert f"{name} of node1 has no value: " in _told(out)
    assert _failed(out) == {"node1"}


def test_what_a_secret_is_made_of_is_not_shown(tmp_path: Path) -> None:
    groups = {group: ["node1"] for group in ("servers", "coordinators", "clients")}
    settings = {"server_store_password": "{{ 'hunter2hunter2' | from_json }}"}
    out = _play_topology(tmp_path, {"node1": settings}, groups=groups)
    assert "server_store_password of node1 has no value: " in _told(out)
    assert "hunter2" not in out


def _look_at_host(*arguments: str) -> dict[str, Any]:
    program = _PREFLIGHT / "files" / "look_at_host.py"
    done = subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_times_that_systemd_does_not_understand_are_found() -> None:
    good = ["calendar=daily", "calendar=Mon *-*-* 03:00:00", "timespan=1h 30min", "timespan=0"]
    bad = ["calendar=every day", "timespan=daily", "timespan=-1h", "calendar="]
    assert _look_at_host(*good)["misunderstood"] == []
    assert _look_at_host(good[0], bad[0], good[2], *bad[1:], "65535")["misunderstood"] == bad


def test_who_holds_a_port_is_found_beside_times_and_space() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = _look_at_host("calendar=daily", str(port))
    assert [holder["pid"] for holder in found["listeners"]] == [os.getpid()]
    assert found["listeners"][0]["port"] == port
    assert all(space > 0 for space in found["free_mb"].values())
    assert _look_at_host(str(port))["listeners"] == []


def test_addresses_that_are_not_the_hosts_own_are_found() -> None:
    good = ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"]  # noqa: S104 - not bound for long
    bad = ["192.0.2.77", "2001:db8::77", "nobody.invalid"]
    found = _look_at_host(*(f"bind={address}" for address in [*good, *bad]), "65535")
    assert [*found["unbindable"]] == bad
    assert all(found["unbindable"].values())


def test_users_and_groups_that_there_are_not_are_found() -> None:
    found = _look_at_host("user=root", "group=root", "user=not_here", "group=nor_here", "65535")
    assert found["unknown"] == ["user not_here", "group nor_here"]
    assert found["misunderstood"] == []


def test_an_inventory_of_other_groups_is_no_success(tmp_path: Path) -> None:
    """Ansible itself says that no hosts matched, and that all went well."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"children": {"server": {"hosts": {"a": {}}}}}}))
    command = Path(sys.executable).with_name("ansible-playbook")
    play = subprocess.run(
        [command, "-i", inventory, "site.yml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert play.returncode != 0
    assert "no hosts in the groups coordinators, servers" in " ".join(play.stdout.split())


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("sqlite:////var/lib/a.db", "sqlite:////var/lib/a.db", True),
        ("sqlite:////var/lib/a.db", "sqlite:////var/lib/b.db", False),
        ("sqlite:////var/lib/a.db", "postgresql://db1/a", False),
        ("postgresql://u@db1/a", "postgresql://v@DB1:5432/a?sslmode=require&passfile=/x", True),
        ("postgresql://u@db1/a", "postgresql://u@db1/b", False),
        ("postgresql://u@db1/a", "postgresql://u@db2/a", False),
        ("postgresql://u@db1/a", "postgresql://u@db1:5433/a", False),
        ("postgresql://u@db1,db2/a", "postgresql://u@db2,db3/a", True),
        ("postgresql://u@[2001:db8::1]/a", "postgresql://[2001:db8::1]:5432/a", True),
        ("postgresql:///a?host=db1", "postgresql://u@db1/a", True),
        ("postgresql:///a?host=db1&port=1", "postgresql://u@db1:1/a", True),
        ("postgresql://u@db1:1,db2:2/a", "postgresql://u@db2:1/a", False),
        ("postgresql://a@db1", "postgresql://u@db1/a", True),
    ],
)
def test_stores_are_the_same_when_their_messages_are(url: str, other: str, same: bool) -> None:
    stores = load_module("roles/preflight/test_plugins/stores.py")
    assert stores.is_same_store(url, other) is same
    assert stores.is_same_store(other, url) is same


def test_numbers_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    groups = {"servers": ["node1"], "coordinators": ["node1"], "clients": ["node1"]}
    settings = {"server_retention": "86460", "coordinator_hedge_floor": "0.2"}
    told = _told(_play_topology(tmp_path, {"node1": settings}, groups=groups))
    assert "server_retention (86460 s) has to be longer than server_token_ttl (86400 s)" in told
    assert "coordinator_hedge_floor of node1 is more than its coordinator_hedge_ceiling" in told
    settings = {"server_retention": "86461", "coordinator_hedge_floor": "0.15"}
    told = _told(_play_topology(tmp_path, {"node1": settings}, groups=groups))
    assert "failed=0" in told
