"""The test ``same_store``: whether two URLs of a message store lead to the same messages."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

DOCUMENTATION = """
name: same_store
author: the maintainers
short_description: Whether two URLs of a message store lead to the same messages
description:
  - For SQLite when the file is the same; for PostgreSQL when the database is, and a host at least.
  - So a standby may be added, and a primary that is gone be left out.
  - Whom to connect as, and how, makes no difference.
options:
  _input:
    type: str
    required: true
    description: One URL.
  other:
    type: str
    required: true
    description: The other one.
"""

EXAMPLES = """
kept: "{{ 'postgresql://db1/sealrelay' is same_store('postgresql://db1,db2/sealrelay') }}"
"""

RETURN = """
_value:
  type: bool
  description: Whether they do.
"""


def find_database(url: str) -> tuple[str, set[str]]:
    """Return the database that a URL names, and the hosts, each with its port, that have it."""
    parts = urlsplit(url)
    parameters = parse_qs(parts.query)
    if parts.scheme != "postgresql":
        return url.partition("?")[0], set()
    user, _, hosts = parts.netloc.rpartition("@")
    user = parameters.get("user", [unquote(user.partition(":")[0])])[0]
    names, ports = [], []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":")
        if not colon or port.endswith("]"):
            name, port = host, ""
        names.append(name.strip("[]"))
        ports.append(port)
    if "host" in parameters:
        names = parameters["host"][0].split(",")
    if "port" in parameters:
        ports = parameters["port"][0].split(",")
    if len(ports) != len(names):
        ports = ports[:1] * len(names)
    database = parameters.get("dbname", [unquote(parts.path.removeprefix("/")) or user])[0]
    found = {
        f"{unquote(name).lower()}:{port or 5432}" for name, port in zip(names, ports, strict=True)
    }
    return f"postgresql:{database}", found


def is_same_store(url: str, other: str) -> bool:
    """Return whether two URLs lead to the same messages."""
    database, hosts = find_database(url)
    other_database, other_hosts = find_database(other)
    return database == other_database and (hosts == other_hosts or bool(hosts & other_hosts))


class TestModule:
    """What Ansible loads."""

    def tests(self) -> dict[str, object]:
        """Return the tests by their names."""
        return {"same_store": is_same_store}
