"""What is on a host: enough to see that a deployment, once removed, has left nothing behind."""

from __future__ import annotations

from tests.support.node import Node

_WHAT = {
    "users": "getent passwd | sort",
    "groups": "getent group | sort",
    "packages": "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | sort",
    "units": "systemctl list-unit-files --no-legend --plain --no-pager | grep -v transient | sort",
    "running": "systemctl list-units --state=active --type=service,socket --no-legend --plain "
    "--no-pager | cut -d' ' -f1 | grep -v -e '^user@' -e '^user-runtime-dir@' | sort",
    # Caches, logs, lists of the package manager and backups may differ: of the user database, and
    # what the distribution keeps of its own databases each midnight.
    "files": "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp "
    "-o -path /var/tmp -o -path /var/log -o -path /var/cache -o -path /var/lib/apt "
    "-o -path /var/backups "
    "-o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /root/.ansible "
    "-o -name __pycache__ -o -path /etc/ld.so.cache "
    "-o -path '/etc/passwd*' -o -path '/etc/group*' -o -path '/etc/shadow*' "
    "-o -path '/etc/gshadow*' -o -path '/etc/subuid*' -o -path '/etc/subgid*' "
    "-o -path /etc/.pwd.lock \\) -prune -o -printf '%p %y %m %u %g %l\\n' | sort",
    "contents of /etc": "find /etc -xdev -type f ! -name 'ld.so.cache' ! -name '*-' "
    "! -name passwd ! -name group ! -name shadow ! -name gshadow ! -name '.pwd.lock' -print0 "
    "| sort -z | xargs -0 sha256sum",
}


def look_at(node: Node) -> dict[str, list[str]]:
    return {name: node.shell(command).splitlines() for name, command in _WHAT.items()}


def compare(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """The differences, one a line."""
    return [
        f"{name}: {sign}{line}"
        for name in before
        for sign, lines in (
            ("-", set(before[name]) - set(after[name])),
            ("+", set(after[name]) - set(before[name])),
        )
        for line in sorted(lines)
    ]
