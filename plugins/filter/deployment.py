"""Filters that say what a deployment is made of: identities, names, addresses, URLs and lists.

Hosts need to know of each other, and find it in each other's variables. A role's defaults are no
variables of a host, hence they stand here again.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleFilterError
from jinja2 import Undefined

DEFAULTS: Mapping[str, Any] = {
    "client_names": ["client1", "client2"],
    "coordinator_bind": "0.0.0.0",  # noqa: S104 - the role's default
    "coordinator_port": 8000,
    "sealrelay_trust_domain": "sealrelay.internal",
    "server_bind": "127.0.0.1",
    "server_ports": [5001, 5002],
}
# What the app takes (sealrelay.identity); a test compares them.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}", re.ASCII)
TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?", re.ASCII)
# An underscore is not for host names (RFC 952), but resolvers and inventories have it.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)
_ALL_DIGITS = re.compile(r"(?:.*\.)?[0-9]+", re.ASCII)
_GROUPS = ("clients", "servers", "coordinators", "operators", "databases")
_MOST_NAME_BYTES = 64
"""Of a common name (ub-common-name of RFC 5280, appendix A.1), as cryptography counts them."""

_A_NAME = (
    "a name has 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter, a digit or '_'"
)
_A_HOST = "an address (IPv6 without brackets, none with a zone) or a host name"
_AN_ADDRESS = "an IPv4 or IPv6 address, without brackets, port or zone"
_A_URL = "https://HOST:PORT, with an IPv6 address in brackets"


def join_host_port(host: Any, port: Any) -> str:
    """Return HOST:PORT; an IPv6 address is shortened and has brackets (RFC 3986, section 3.2.2)."""
    address = _read_address(host)
    if address is None:
        return f"{host}:{port}"
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def make_url(host: Any, port: Any) -> str:
    """Return https://HOST:PORT."""
    return f"https://{join_host_port(host, port)}"


def find_local_address(bind: Any) -> str:
    """Return where a host itself finds what listens on this address."""
    return "127.0.0.1" if _is_unspecified(bind) else str(bind)


def is_loopback(host: Any) -> bool:
    """Return whether a host is reached under this name or address by itself alone."""
    address = _read_address(host)
    return host == "localhost" if address is None else address.is_loopback


def list_servers(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the servers of these hosts: host, port, the name in the leaf, and the URL."""
    return [
        {"host": str(host), "port": port, "name": name, "url": make_url(address, port)}
        for host in hosts
        for address, name, port in _find_servers(_Host(host, hostvars))
    ]


def list_coordinators(hosts: Iterable[str], hostvars: Mapping[str, Any], own: str) -> list[str]:
    """Return the coordinators' URLs; the one on the host ``own`` by an address without network."""
    urls = []
    for host in (_Host(name, hostvars) for name in hosts):
        bind = host.read("coordinator_bind")
        address = find_local_address(bind) if host.name == own else host.address
        urls.append(make_url(address, host.read("coordinator_port")))
    return urls


def list_clients(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return every client as host and name."""
    return [
        {"host": str(host), "name": client}
        for host in hosts
        for client in _Host(host, hostvars).read_list("client_names")
    ]


def list_addresses(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Return where each of these hosts is found: its ansible_host, or its name."""
    return [_Host(host, hostvars).address for host in hosts]


def as_list(given: Any, elements: str = "str") -> list[Any]:
    """Return a list as it is, and text as the parts between its commas, as Ansible's modules do.

    ``elements`` is "int" where they are numbers. Raises AnsibleFilterError where they are none.
    """
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")] if given.strip() else []
    elif isinstance(given, Sequence | set | KeysView):
        parts = list(given)
    else:
        parts = [given]
    if elements != "int":
        return parts
    try:
        return [int(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(f"'{given}' is no list of whole numbers") from error


def list_networks(hosts: Iterable[str]) -> list[str]:
    """Return each address as a network of its own (/32, /128), and all else as it is."""
    networks = []
    for host in hosts:
        address = _read_address(host)
        networks.append(f"{address}/{address.max_prefixlen}" if address else host)
    return list(dict.fromkeys(networks))


def find_unread(
    hosts: Iterable[str], hostvars: Mapping[str, Any], settings: Iterable[str]
) -> list[str]:
    """Return the hosts that have one of these settings, and no value for it."""
    names = [*settings, "ansible_host"]
    return [host for host in hosts if _Host(host, hostvars).lacks(names)]


def name_successor(name: str, moment: str) -> str:
    """Return the common name of the CA that follows the one of this name.

    ``moment`` makes it another: CRLs name who made them. What is too long for a common name is cut.
    """
    suffix = f" ({moment})"
    return _cut(name, _MOST_NAME_BYTES - len(suffix.encode())) + suffix


def name_authority(trust_domain: str) -> str:
    """Return the common name of a trust domain's first CA, cut where it is too long for one."""
    return _cut(f"sealrelay CA of {trust_domain}", _MOST_NAME_BYTES)


def find_faults(
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Any],
    needed: Iterable[str],
) -> list[str]:
    """Return what is wrong with the identities, names, URLs and SANs that will be made.

    A sentence each, which names the variable and says what it should be. ``groups`` are those of
    the inventory, ``needed`` the settings that other hosts have to be able to read.
    """
    return _collect(_Table(groups, hostvars, needed=frozenset(needed)).find_faults())


def list_identities(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the identities of the deployment as ROLE/NAME, sorted."""
    return _Table(groups, hostvars).list_identities()


def find_own_faults(
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Any],
    host: str,
    own: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Return what is wrong with what a host makes of its own variables.

    ``own`` has their names and values, also of those that others can't read, as they are made of
    ``hostvars``.
    """
    values = {setting["name"]: setting["value"] for setting in own}
    return _collect(_Table(groups, hostvars, own={host: values}).find_faults_of(host))


def _collect(faults: Iterator[str]) -> list[str]:
    found = []
    try:
        for fault in faults:
            found.append(fault)
    except AnsibleFilterError as error:
        found.append(str(error))
    return list(dict.fromkeys(found))


class _Host:
    """A host of the inventory, and its variables as other hosts see them."""

    def __init__(
        self,
        name: str,
        hostvars: Mapping[str, Any],
        own: Mapping[str, Any] | None = None,
        needed: frozenset[str] | None = None,
    ) -> None:
        """``own`` are values as the host itself sees them; None for ``needed`` means all."""
        self.name = str(name)
        # Once: Ansible gathers all of them anew each time.
        self._variables: Mapping[str, Any] = hostvars[name]
        self._own = own or {}
        self._needed = needed

    def has(self, setting: str) -> bool:
        return setting in self._own or setting in self._variables

    def read(self, setting: str, default: Any = None) -> Any:
        """Return the value, or the role's default. Raises AnsibleFilterError if it has none.

        The default also stands for a value that nobody but the host itself needs, and reads.
        """
        if setting in self._own:
            return self._own[setting]
        if setting not in self._variables:
            return DEFAULTS.get(setting, default)
        try:
            value = self._variables[setting]
            _check_evaluated(value)
        except Exception as error:  # noqa: BLE001 - an expression may raise anything
            if self._needed is not None and setting not in self._needed:
                return DEFAULTS.get(setting, default)
            raise AnsibleFilterError(
                f"{setting} of {self.name} can't be read by other hosts ({error}); set it to a "
                f"value, or to an expression that has no hostvars in it and whose facts exist."
            ) from None
        return value

    def read_list(self, setting: str, default: Any = None) -> list[Any]:
        value = self.read(setting, default)
        if isinstance(value, Mapping):
            raise AnsibleFilterError(
                f"{setting} of {self.name} is {value!r}, which is no list; write it as one, such "
                f"as [a, b]."
            )
        return as_list(value)

    def lacks(self, settings: Iterable[str]) -> bool:
        try:
            for setting in settings:
                self.read(setting)
        except AnsibleFilterError:
            return True
        return False

    @property
    def address(self) -> str:
        return str(self.read("ansible_host", self.name))


def _find_servers(host: _Host) -> Iterator[tuple[Any, str, Any]]:
    """Yield of each server where it is found, its name and its port."""
    address = host.read("server_address", host.read("server_bind"))
    prefix = host.read("server_name_prefix", host.name)
    for port in host.read_list("server_ports"):
        yield address, f"{prefix}-{port}", port


class _Table:
    """Everything that the deployment will make, and what is wrong with it."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        hostvars: Mapping[str, Any],
        own: Mapping[str, Mapping[str, Any]] | None = None,
        needed: frozenset[str] | None = None,
    ) -> None:
        names = dict.fromkeys(name for group in _GROUPS for name in groups.get(group, []))
        hosts = {name: _Host(name, hostvars, (own or {}).get(name), needed) for name in names}
        self._hosts = {group: [hosts[n] for n in groups.get(group, [])] for group in _GROUPS}
        self._needed = needed or frozenset()
        self._names: list[tuple[str, str, str]] = []
        """Of each identity: role/name, host, the variable that it comes from."""
        self._urls: list[tuple[str, str]] = []
        """Of each server: URL, host."""
        self._domains: dict[str, list[str]] = {}
        """Trust domain → where it is set."""

    def find_faults(self) -> Iterator[str]:
        for host in dict.fromkeys(host for hosts in self._hosts.values() for host in hosts):
            for setting in sorted(self._needed):
                host.read(setting)
            yield from self._look_at_host(host)
        yield from self._find_doubles()

    def list_identities(self) -> list[str]:
        for _ in self.find_faults():
            pass
        return sorted({name for name, _, _ in self._names})

    def find_faults_of(self, name: str) -> Iterator[str]:
        for host in dict.fromkeys(h for hosts in self._hosts.values() for h in hosts):
            if host.name == name:
                yield from self._look_at_host(host)

    def _look_at_host(self, host: _Host) -> Iterator[str]:
        for group, look in {
            "clients": self._look_at_clients,
            "servers": self._look_at_servers,
            "coordinators": self._look_at_coordinator,
            "operators": self._look_at_operator,
            "databases": self._look_at_database,
        }.items():
            if host in self._hosts[group]:
                yield from look(host)
        if host.has("ca_name") and host.read("ca_source", "own") == "own":
            yield from _look_at_authority_name(host, host.read("ca_name", name_authority("")))

    def _look_at_clients(self, host: _Host) -> Iterator[str]:
        for name in host.read_list("client_names"):
            yield from self._look_at_name(host, "client", "client_names", name)
        yield from self._look_at_trust_domain(host, "client")
        yield from _look_at_urls(host, "client_coordinators")

    def _look_at_servers(self, host: _Host) -> Iterator[str]:
        yield from _look_at_address(host, "server_bind")
        yield from _look_at_address(host, "server_address")
        prefix = host.read("server_name_prefix", host.name)
        if fault := _find_type_fault(host, "server_name_prefix", prefix):
            yield fault
        address = host.read("server_address", host.read("server_bind"))
        if _is_unspecified(address):
            yield (
                f"The servers of {host.name} listen on every address ({address}), which says "
                f"nothing about where to find them; set server_address to the one that "
                f"coordinators shall use."
            )
        others = self._find_others(host, "coordinators")
        if others and is_loopback(address):
            yield (
                f"The servers of {host.name} listen on {address}, which coordinators on "
                f"{', '.join(others)} can't reach; set server_bind to an address of this host that "
                f"they can."
            )
        for _, name, port in _find_servers(host):
            yield from self._look_at_name(host, "server", "server_name_prefix", name, host.name)
            self._urls.append((make_url(address, port), host.name))
        yield from self._look_at_trust_domain(host, "server")

    def _look_at_coordinator(self, host: _Host) -> Iterator[str]:
        bind = host.read("coordinator_bind")
        if _read_address(bind) is None:
            yield (
                f"coordinator_bind of {host.name} is {bind!r}; systemd, which holds the port, "
                f"takes {_AN_ADDRESS} (127.0.0.1 for localhost)."
            )
        clients = self._find_others(host, "clients", unless="client_coordinators")
        if clients and is_loopback(bind):
            yield (
                f"The coordinator of {host.name} listens on {bind}, which clients on "
                f"{', '.join(clients)} can't reach; set coordinator_bind to an address that they "
                f"can."
            )
        callers = clients + self._find_others(host, "operators", unless="operator_coordinators")
        if callers and not _is_host(host.address):
            there = ", ".join(dict.fromkeys(callers))
            yield (
                f"Clients and operators on {there} would look for the coordinator of {host.name} "
                f"at {host.address!r}; set ansible_host to {_A_HOST}."
            )
        for extra in host.read_list("coordinator_hosts", []):
            if not _is_host(extra, wildcard=True):
                yield f"coordinator_hosts of {host.name} has {extra!r}; write {_A_HOST}, in quotes."
        name = host.read("coordinator_name", host.name)
        yield from self._look_at_name(host, "coordinator", "coordinator_name", name, host.name)
        yield from self._look_at_trust_domain(host, "coordinator")

    def _look_at_operator(self, host: _Host) -> Iterator[str]:
        name = host.read("operator_name", host.name)
        yield from self._look_at_name(host, "operator", "operator_name", name, host.name)
        yield from self._look_at_trust_domain(host, "operator")
        yield from _look_at_urls(host, "operator_coordinators")

    def _look_at_database(self, host: _Host) -> Iterator[str]:
        self._names.append((f"database/{host.name}", host.name, "inventory_hostname"))
        if not NAME.fullmatch(host.name):
            yield (
                f"The database's host is called {host.name!r} in the inventory, and so would be "
                f"its leaf; {_A_NAME}: give it such a one there."
            )
        for variable in ("postgresql_listen", "postgresql_hosts"):
            for extra in host.read_list(variable, []):
                if not _is_host(extra, wildcard=True) and extra != "*":
                    yield f"{variable} of {host.name} has {extra!r}; write {_A_HOST}, in quotes."
        yield from self._look_at_trust_domain(host, "postgresql")

    def _find_others(self, host: _Host, group: str, unless: str = "") -> list[str]:
        """Return the other hosts of a group, but those that have a variable for it."""
        return [
            other.name
            for other in self._hosts[group]
            if other.name != host.name and not other.has(unless)
        ]

    def _look_at_name(
        self, host: _Host, role: str, variable: str, name: Any, own: str | None = None
    ) -> Iterator[str]:
        """``own`` is the host's name in the inventory, where it takes the place of a variable."""
        if fault := _find_type_fault(host, variable, name):
            yield fault
        elif not NAME.fullmatch(name):
            set_it = f"; set {variable} to such a one" if own else ""
            yield (
                f"{variable} of {host.name} makes the name {name!r} of a {role}, but {_A_NAME}"
                f"{set_it}."
            )
        self._names.append((f"{role}/{name}", host.name, variable))

    def _look_at_trust_domain(self, host: _Host, role: str) -> Iterator[str]:
        own = f"{role}_trust_domain"
        variable = own if host.has(own) else "sealrelay_trust_domain"
        domain = host.read(variable)
        self._domains.setdefault(str(domain), []).append(f"{variable} of {host.name}")
        if fault := _find_type_fault(host, variable, domain):
            yield fault
        elif not TRUST_DOMAIN.fullmatch(domain):
            yield (
                f"{variable} of {host.name} is {domain!r}; a trust domain has 1 to 255 lower-case "
                f"letters, digits, '.', '_' or '-', and begins and ends with a letter or a digit."
            )

    def _find_doubles(self) -> Iterator[str]:
        names = Counter(name for name, _, _ in self._names)
        for name in (name for name, count in names.items() if count > 1):
            hosts = [host for other, host, _ in self._names if other == name]
            variable = next(found for other, _, found in self._names if other == name)
            yield (
                f"{name} would be {names[name]} times in this deployment ({', '.join(hosts)}), but "
                f"a name stands for one identity; give each its own in {variable}."
            )
        urls = Counter(url for url, _ in self._urls)
        for url in (url for url, count in urls.items() if count > 1):
            hosts = [host for other, host in self._urls if other == url]
            yield (
                f"{url} would be the address of {urls[url]} servers ({', '.join(hosts)}); give "
                f"each its own in server_address (by default server_bind) and server_ports."
            )
        if len(self._domains) > 1:
            there = "; ".join(f"{domain}: {', '.join(v)}" for domain, v in self._domains.items())
            yield (
                f"The hosts have different trust domains ({there}), and would refuse each other; "
                f"set sealrelay_trust_domain once for all, in the inventory's group_vars."
            )


def _look_at_authority_name(host: _Host, name: Any) -> Iterator[str]:
    if fault := _find_type_fault(host, "ca_name", name):
        yield fault
    elif not 1 <= len(name.encode()) <= _MOST_NAME_BYTES:
        yield (
            f"ca_name is {len(name.encode())} bytes long; a certificate's common name has 1 to "
            f"{_MOST_NAME_BYTES}, so choose another."
        )


def _look_at_address(host: _Host, variable: str) -> Iterator[str]:
    value = host.read(variable)
    if value is not None and not _is_host(value):
        yield f"{variable} of {host.name} is {value!r}; set it to {_A_HOST}, without a port."


def _look_at_urls(host: _Host, variable: str) -> Iterator[str]:
    for url in host.read_list(variable, []):
        if not is_url(url):
            yield f"{variable} of {host.name} has {url!r}; write it as {_A_URL}."


def is_url(url: Any) -> bool:
    """Return whether the app takes this for the URL of a service (sealrelay.config.split_url)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, AttributeError, TypeError):
        return False
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment)
    named = bool(parts.hostname) and parts.username is None
    return isinstance(url, str) and parts.scheme == "https" and plain and named and bool(port)


def _find_type_fault(host: _Host, variable: str, value: Any) -> str:
    if isinstance(value, str):
        return ""
    kind = "a truth value (as yes, no, on and off are)" if isinstance(value, bool) else "a number"
    if not isinstance(value, int | float):
        kind = "no text"
    if isinstance(value, datetime.date):
        kind = "a date"
    return (
        f"{variable} of {host.name} has {value!r}, which is {kind} for YAML and not the text that "
        f"was written; put quotes around it."
    )


def _is_host(value: Any, *, wildcard: bool = False) -> bool:
    """Return whether a text is an address without a zone, or the name of a host."""
    if _read_address(value) is not None:
        return True
    # A resolver takes a number for an address, such as 10 for 0.0.0.10.
    if not isinstance(value, str) or _ALL_DIGITS.fullmatch(value):
        return False
    return bool(_HOST_NAME.fullmatch(value.removeprefix("*.") if wildcard else value))


def _is_unspecified(value: Any) -> bool:
    address = _read_address(value)
    return address is not None and address.is_unspecified


def _read_address(value: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a text is. A number is none, though it would count as one."""
    if not isinstance(value, str) or "%" in value:
        return None
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def _check_evaluated(value: Any) -> None:
    """Raise UndefinedError or ValueError for what holds an expression without a value."""
    if isinstance(value, Undefined):
        str(value)  # raises, with the reason
    elif isinstance(value, str):
        # Before ansible-core 2.19 such an expression is left as it is.
        if "{{" in value or "{%" in value:
            raise ValueError("what it is made of is not known here")
    elif isinstance(value, Mapping):
        for member in value.values():
            _check_evaluated(member)
    elif isinstance(value, Sequence):
        for member in value:
            _check_evaluated(member)


def _cut(text: str, most: int) -> str:
    """Cut a text to at most ``most`` bytes in UTF-8, between characters."""
    return text.encode()[:most].decode(errors="ignore").rstrip(" .-")


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "as_list": as_list,
            "find_faults": find_faults,
            "find_local_address": find_local_address,
            "find_own_faults": find_own_faults,
            "find_unread": find_unread,
            "is_loopback": is_loopback,
            "join_host_port": join_host_port,
            "list_addresses": list_addresses,
            "list_clients": list_clients,
            "list_coordinators": list_coordinators,
            "list_identities": list_identities,
            "list_networks": list_networks,
            "list_servers": list_servers,
            "make_url": make_url,
            "name_authority": name_authority,
            "name_successor": name_successor,
        }
