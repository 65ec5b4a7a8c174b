"""Identities, names, addresses and URLs that are made of an inventory."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from cryptography import x509
from cryptography.x509.oid import NameOID

from sealrelay import identity
from sealrelay.config import split_bind, split_url
from tests.repo.conftest import (
    REPOSITORY,
    load_module,
    read_yaml,
    role_defaults,
    run_playbook,
    tracked_files,
)
from tests.repo.test_certificates import _FILTERS as CERTIFICATE_FILTERS

_SETTINGS = read_yaml(REPOSITORY / "roles" / "preflight" / "vars" / "main.yml")
_READ_IN_YAML = re.compile(r"(?:hostvars\[.+?\]\.|'extract', hostvars\) \| map\(attribute=')(\w+)")
# What makes an address and a port one text by hand, or puts brackets around an address.
_BY_HAND = re.compile(
    r"""https://(?:\{\{|'\s*~|"\s*~)|~\s*['"]:['"]\s*~|\}\}:\{\{|['"]\[['"]\s*~|~\s*['"]\]"""
)
# One thing that is none of that: a passfile has ':' between its fields.
_NO_ADDRESS = "server_store_password | replace("


_MODULE = load_module("plugins/filter/deployment.py")
_FILTERS: dict[str, Callable[..., Any]] = _MODULE.FilterModule().filters()
_ONE_HOST = {group: ["node1"] for group in ("clients", "servers", "coordinators", "operators")}


def find_faults(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]] = _ONE_HOST
) -> list[str]:
    faults: list[str] = _FILTERS["find_faults"](groups, hostvars, _SETTINGS["_preflight_shared"])
    return faults


class _Recorder(dict[str, Any]):
    """Variables of a host that remember what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return False


@pytest.mark.parametrize(
    ("host", "joined"),
    [
        ("192.0.2.1", "192.0.2.1:8000"),
        ("relay.example.net", "relay.example.net:8000"),
        ("fd00::12", "[fd00::12]:8000"),
        # As systemd shows it, with which it is compared.
        ("FD00:0::0012", "[fd00::12]:8000"),
        ("::", "[::]:8000"),
        ("10", "10:8000"),
    ],
)
def test_a_host_and_a_port_are_joined_as_the_app_splits_them(host: str, joined: str) -> None:
    assert _FILTERS["join_host_port"](host, 8000) == joined
    name, port = split_bind(joined)
    assert _FILTERS["join_host_port"](name, port) == joined
    url = _FILTERS["make_url"](host, 8000)
    assert (url, split_url(url)) == (f"https://{joined}", (name, port))


def test_no_address_and_port_are_joined_by_hand() -> None:
    files = tracked_files("roles/*.yml", "roles/*.j2", "playbooks/*.yml", "inventory/*.yml")
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if _BY_HAND.search(line) and _NO_ADDRESS not in line
    ]
    assert found == [], "use join_host_port or make_url"


@pytest.mark.parametrize(
    "line",
    [
        "'https://' ~ address ~ port",
        "https://{{ host }}",
        "{{ bind }}:{{ port }}",
        "address ~ ':' ~ port",
        "'[' ~ address ~ ']'",
    ],
)
def test_what_is_joined_by_hand_is_seen(line: str) -> None:
    assert _BY_HAND.search(line)


def test_names_and_domains_are_those_that_the_app_takes() -> None:
    assert _MODULE.NAME.pattern == identity.NAME.pattern
    assert _MODULE.NAME.flags == identity.NAME.flags
    assert _MODULE.TRUST_DOMAIN.pattern == identity.TRUST_DOMAIN.pattern
    assert _MODULE.TRUST_DOMAIN.flags == identity.TRUST_DOMAIN.flags


@pytest.mark.parametrize(
    "url",
    [
        "https://relay:8000",
        "https://[fd00::12]:8000/",
        "https://fd00::12:8000",
        "https://[fd00::12:8000",
        "http://relay:8000",
        "https://relay",
        "https://relay:0",
        "https://relay:99999",
        "https://:8000",
        "https://a@relay:8000",
        "https://relay:8000/api",
        "https://relay:8000?a",
        "relay:8000",
        "",
    ],
)
def test_urls_are_those_that_the_app_takes(url: str) -> None:
    try:
        split_url(url)
    except ValueError:
        taken = False
    else:
        taken = True
    assert _MODULE.is_url(url) is taken
    assert bool(find_faults({"node1": {"client_coordinators": [url]}})) is not taken


def test_defaults_are_those_of_the_roles() -> None:
    for name, value in _MODULE.DEFAULTS.items():
        role = name.partition("_")[0]
        if role != "sealrelay":
            assert role_defaults(role)[name] == value
    assert f"default('{_MODULE.DEFAULTS['sealrelay_trust_domain']}')" in str(
        role_defaults("server")
    )


def test_every_setting_that_is_read_of_other_hosts_is_looked_at() -> None:
    read, facts = set(), set()
    for path in tracked_files("roles/*.yml", "playbooks/*.yml"):
        read |= set(_READ_IN_YAML.findall(path.read_text()))
        facts |= _find_facts(read_yaml(path))
    variables = _Recorder()
    for name, more in {
        "list_servers": [],
        "list_coordinators": ["node2"],
        "list_clients": [],
        "list_addresses": [],
    }.items():
        _FILTERS[name](["node1"], {"node1": variables}, *more)
    # Ansible's own: a host has another value of it for itself.
    assert (
        sorted((read | variables.asked) - facts - {"ansible_host"})
        == (_SETTINGS["_preflight_shared"])
    )
    variables = _Recorder()
    groups = {**_ONE_HOST, "databases": ["node1"]}
    _FILTERS["find_own_faults"](groups, {"node1": variables}, "node1", [])
    # Asked for only where a CA has a name.
    asked = variables.asked - {"ansible_host"} | {"ca_source"}
    assert sorted(asked) == _SETTINGS["_preflight_named"]


def _find_facts(value: Any) -> set[str]:
    """What the tasks in a YAML document set as facts."""
    if isinstance(value, list):
        return set().union(*map(_find_facts, value))
    if not isinstance(value, dict):
        return set()
    return set(value.get("ansible.builtin.set_fact", ())) | _find_facts(list(value.values()))


def test_hosts_find_each_other_over_ipv6() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "relay": {"ansible_host": "fd00::12", "coordinator_bind": "::"},
        "spare": {"ansible_host": "fd00::13", "coordinator_bind": "fd00::13"},
        "node1": {"server_bind": "fd00::21", "server_ports": [5001], "server_name_prefix": "a"},
    }
    relays = ["relay", "spare"]
    coordinators = _FILTERS["list_coordinators"]
    assert coordinators(relays, hostvars, "node1") == [
        *("https://[fd00::12]:8000", "https://[fd00::13]:8000")
    ]
    # The own one by an address that needs no network, where it listens on one.
    assert coordinators(relays, hostvars, "relay")[0] == "https://127.0.0.1:8000"
    assert coordinators(relays, hostvars, "spare")[1] == "https://[fd00::13]:8000"
    assert _FILTERS["list_servers"](["node1"], hostvars) == [
        {"host": "node1", "port": 5001, "name": "a-5001", "url": "https://[fd00::21]:5001"}
    ]
    assert _FILTERS["list_addresses"](["relay", "node1"], hostvars) == ["fd00::12", "node1"]
    groups = {"clients": ["node1"], "coordinators": relays, "servers": ["node1"]}
    assert find_faults(hostvars, groups) == []


def test_pg_hba_gets_networks_of_addresses_only() -> None:
    hosts = ["192.0.2.1", "fd00::12", "10", "db.example.net", "192.0.2.0/24", "fd00::/8"]
    assert _FILTERS["list_networks"](hosts) == [
        *("192.0.2.1/32", "fd00::12/128", "10", "db.example.net", "192.0.2.0/24", "fd00::/8")
    ]


def test_the_databases_leaf_names_the_one_host_of_the_stores_url() -> None:
    wanted = read_yaml(REPOSITORY / "roles" / "postgresql" / "vars" / "main.yml")
    pattern = re.findall(r"'(\^.+?)'\)", wanted["_postgresql_needed_hosts"])[0]
    for url, host in {
        "postgresql://u@[fd00::12]:5432/a": ["[fd00::12]"],
        "postgresql://db1/a": ["db1"],
        "postgresql://u@192.0.2.1": ["192.0.2.1"],
        "postgresql://db1,db2/a": [],
        "postgresql:///a": [],
    }.items():
        assert re.findall(pattern, url) == host


_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "coordinator_bind": ({"coordinator_bind": "localhost"}, "systemd, which holds the port"),
    "coordinator_bind in brackets": ({"coordinator_bind": "[::1]"}, "coordinator_bind of node1"),
    "coordinator_bind with a zone": ({"coordinator_bind": "fe80::1%eth0"}, "port or zone"),
    "server_bind": ({"server_bind": "192.0.2.1:5001"}, "server_bind of node1 is '192.0.2.1:5001'"),
    "server_bind is no address": ({"server_bind": "192.0.2.256"}, "server_bind of node1"),
    "server_bind is a number": ({"server_bind": 10}, "server_bind of node1 is 10"),
    "server_address": ({"server_address": "https://a"}, "server_address of node1 is 'https://a'"),
    "server_address everywhere": ({"server_bind": "0::0"}, "listen on every address (0::0)"),
    "domain": ({"sealrelay_trust_domain": "Example.net"}, "sealrelay_trust_domain of node1 is"),
    "domain number": ({"sealrelay_trust_domain": 1.1}, "1.1, which is a number for YAML"),
    "domain long": ({"sealrelay_trust_domain": "a" * 256}, "has 1 to 255"),
    "domain of a role": ({"server_trust_domain": "a b"}, "server_trust_domain of node1 is 'a b'"),
    "domains differ": ({"client_trust_domain": "b"}, "different trust domains"),
    "client number": ({"client_names": [8]}, "client_names of node1 has 8, which is a number"),
    "client truth": (
        {"client_names": [False]},
        "client_names of node1 has False, which is a truth",
    ),
    "client null": ({"client_names": [None]}, "client_names of node1 has None, which is no text"),
    "client": ({"client_names": ["a/b"]}, "client_names of node1 makes the name 'a/b' of a client"),
    "client long": ({"client_names": ["a" * 64]}, "a name has 1 to 63 letters"),
    "clients": ({"client_names": ["a", "a"]}, "client/a would be 2 times in this deployment"),
    "no list": (
        {"client_names": {"client1": None}},
        "client_names of node1 is {'client1': None}, which is no list",
    ),
    "prefix": (
        {"server_name_prefix": "a:b"},
        "server_name_prefix of node1 makes the name 'a:b-5001'",
    ),
    "prefix long": ({"server_name_prefix": "a" * 59}, "server_name_prefix of node1 makes the name"),
    "prefix number": ({"server_name_prefix": 8}, "server_name_prefix of node1 has 8"),
    "coordinator": ({"coordinator_name": "a b"}, "coordinator_name of node1 makes the name 'a b'"),
    "operator": ({"operator_name": True}, "operator_name of node1 has True"),
    "more names": ({"coordinator_hosts": ["a/b"]}, "coordinator_hosts of node1 has 'a/b'"),
    "more numbers": ({"coordinator_hosts": [10]}, "coordinator_hosts of node1 has 10"),
    "urls": ({"operator_coordinators": ["https://::1:1"]}, "operator_coordinators of node1 has"),
    "ca_name": ({"ca_name": "ä" * 33}, "ca_name is 66 bytes long"),
    "ca_name empty": ({"ca_name": ""}, "ca_name is 0 bytes long"),
    "ports": ({"server_ports": [5001, 5001]}, "server/node1-5001 would be 2 times"),
}


@pytest.mark.parametrize(("variables", "fault"), [*_FAULTS.values()], ids=[*_FAULTS])
def test_what_can_not_work_is_refused_by_its_name(variables: dict[str, Any], fault: str) -> None:
    assert find_faults({"node1": {}}) == []
    (told, *_) = (told for told in find_faults({"node1": variables}) if fault in told)
    assert told.endswith(".")
    own = [{"name": name, "value": value} for name, value in variables.items()]
    if "differ" not in told and "times" not in told:
        hidden = dict.fromkeys(variables, "{{ hostvars }}")
        assert told in _FILTERS["find_own_faults"](_ONE_HOST, {"node1": hidden}, "node1", own)


@pytest.mark.parametrize(
    "variables",
    [
        {"coordinator_bind": "::", "server_bind": "::1"},
        {"server_bind": "localhost"},
        {"server_bind": "0.0.0.0", "server_address": "node_1.example.net"},  # noqa: S104
        {"sealrelay_trust_domain": "a" * 255},
        {"client_names": ["010", "no", "_", "a" * 63]},
        {"coordinator_hosts": ["*.example.net", "fd00::1", "relay"]},
        {"ca_source": "files", "ca_name": "ä" * 33},
    ],
)
def test_what_works_is_not_refused(variables: dict[str, Any]) -> None:
    assert find_faults({"node1": variables}) == []


def test_hosts_in_the_inventory_are_names_and_addresses() -> None:
    for name in ("a/b", "fd00::12", "a" * 64, "ä"):
        groups = {group: [name] for group in _ONE_HOST}
        told = " ".join(find_faults({name: {}}, groups))
        for variable in ("server_name_prefix", "coordinator_name", "operator_name"):
            assert f"set {variable} to such a one" in told
        named = {"server_name_prefix": "a", "coordinator_name": "a", "operator_name": "a"}
        assert find_faults({name: named}, groups) == []
    assert "The database's host is called 'a/b'" in " ".join(
        find_faults({"a/b": {}}, {"databases": ["a/b"]})
    )


def test_hosts_that_others_do_not_reach_are_refused() -> None:
    groups = {"clients": ["far"], "servers": ["near"], "coordinators": ["near"]}
    own = {"coordinator_bind": "127.0.0.2"}
    (told,) = find_faults({"near": own, "far": {}}, groups)
    assert "listens on 127.0.0.2, which clients on far can't reach" in told
    # They go another way.
    assert (
        find_faults({"near": own, "far": {"client_coordinators": ["https://lb:1"]}}, groups) == []
    )
    (told,) = find_faults({"near": {"ansible_host": "fe80::1%eth0"}, "far": {}}, groups)
    assert "would look for the coordinator of near at 'fe80::1%eth0'; set ansible_host" in told
    # For a resolver that is 0.0.0.10.
    (told,) = find_faults({"10": {}, "far": {}}, {**groups, "servers": [], "coordinators": ["10"]})
    assert "at '10'" in told
    elsewhere = {**groups, "clients": ["near"], "coordinators": ["far"]}
    (told,) = find_faults({"near": {}, "far": {}}, elsewhere)
    assert "listen on 127.0.0.1, which coordinators on far can't reach" in told


def test_two_of_one_name_or_address_are_refused() -> None:
    groups = {"clients": ["a"], "servers": ["a", "b"], "coordinators": ["a"]}
    shared = {"server_bind": "192.0.2.7", "server_ports": [5001]}
    (told,) = find_faults({"a": shared, "b": shared}, groups)
    assert "https://192.0.2.7:5001 would be the address of 2 servers (a, b)" in told
    names = {**shared, "server_name_prefix": "x"}
    other = {**names, "server_bind": "192.0.2.8"}
    (told,) = find_faults({"a": names, "b": other}, groups)
    assert "server/x-5001 would be 2 times in this deployment (a, b)" in told


class _Raising(dict[str, Any]):
    def __getitem__(self, name: str) -> Any:
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    "variables",
    [
        _Raising(server_bind=""),
        {"server_bind": "{{ ansible_facts.default_ipv4.address }}"},
        {"server_ports": [5001, "{{ port }}"]},
    ],
)
def test_a_setting_without_a_value_is_no_default(variables: dict[str, Any]) -> None:
    hostvars = {"node1": variables, "node2": {}}
    with pytest.raises(AnsibleFilterError, match=r"server_(bind|ports) of node1 can't be read"):
        _FILTERS["list_servers"](["node1"], hostvars)
    assert _FILTERS["find_unread"](["node2", "node1"], hostvars, variables) == ["node1"]
    assert "of node1 can't be read by other hosts" in find_faults({"node1": variables})[0]


@pytest.mark.parametrize("domain", ["a", "sealrelay.internal", "a" * 48, "a" * 49, "a" * 255])
def test_the_name_of_a_ca_and_of_its_successor_fit_a_certificate(domain: str) -> None:
    name = _FILTERS["name_authority"](domain)
    assert name.startswith(f"sealrelay CA of {domain[:40]}")
    assert len(name) <= 64
    for own in (name, "ä" * 32, "x" * 64):
        successor = _FILTERS["name_successor"](own, "2026-11-30 12:00:00")
        assert successor.endswith(" (2026-11-30 12:00:00)")
        assert own.startswith(successor.partition(" (")[0])
        assert len(successor.encode()) <= 64
    assert _FILTERS["name_successor"]("A B", "now") == "A B (now)"


def test_a_ca_of_a_long_trust_domain_is_made_and_rotated(tmp_path: Path) -> None:
    """For real, on the control node: a common name that is too long is refused by OpenSSL."""
    domain = f"{'a' * 60}.internal"
    tasks = [
        {"ansible.builtin.import_role": {"name": "ca"}},
        {"ansible.builtin.import_role": {"name": "ca", "tasks_from": "begin_rotation"}},
    ]
    play = {"hosts": "node1", "gather_facts": False, "connection": "local", "tasks": tasks}
    variables = {
        "ca_dir": str(tmp_path / "pki"),
        "ca_passphrase": secrets.token_hex(),
        "sealrelay_trust_domain": domain,
    }
    playbook, inventory = tmp_path / "play.yml", tmp_path / "hosts.yml"
    playbook.write_text(yaml.safe_dump([play]))
    inventory.write_text(
        yaml.safe_dump({"all": {"hosts": {"node1": {}}, "vars": variables}}),
    )
    done = run_playbook(
        tmp_path, "-i", inventory, playbook, ANSIBLE_ROLES_PATH=str(REPOSITORY / "roles")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = [
        x509.load_pem_x509_certificate((tmp_path / "pki" / path).read_bytes()).subject
        for path in ("ca.pem", "next/ca.pem")
    ]
    first, following = (
        str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) for name in names
    )
    assert first == f"sealrelay CA of {domain}"[:64]
    assert re.fullmatch(r"sealrelay CA of a{26} \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)", following)


def test_what_preflight_takes_for_a_host_gets_into_the_leaf() -> None:
    hosts = ["relay", "node_1.example.net", "fd00::12", "192.0.2.1", "localhost", "*.example.net"]
    sans = CERTIFICATE_FILTERS["list_sans"](hosts, "spiffe://a/b/c")
    assert len(sans) == 1 + len(hosts)
    assert find_faults({"node1": {"coordinator_hosts": hosts}}) == []
