"""The table of secrets in docs/secrets.md, as the tests read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.support.node import REPOSITORY, Node

PAGE = REPOSITORY / "docs" / "secrets.md"
FERNET_KEY = re.compile(r"(?<![A-Za-z0-9_+/-])[A-Za-z0-9_-]{43}=(?!=)")
"""A key for Fernet in a text; not the end of something longer in base64."""
_KEY_LINE = "PRIVATE KEY|^[A-Za-z0-9_-]{43}=$"
# The last line of a certificate or a CRL can look like a key for Fernet.
_LEAVE_OUT = "/BEGIN CERTIFICATE/,/END CERTIFICATE/d; /BEGIN X509 CRL/,/END X509 CRL/d"
_ROW = re.compile(
    r"\| ([a-z ]+) \| `([^`]+)` \| ([A-Za-z' ]+) \| ([a-z-]+) \|([a-z -]*)\| (\d+) \|"
)
_ALTERNATIVES = {"PORT": ("5001", "5002"), "NAME": ("client1", "client2")}


@dataclass(frozen=True)
class SecretPath:
    """One line of the table, for one port or client."""

    place: str
    """Which hosts have it."""
    path: str
    """Without a slash at its end."""
    condition: str
    owner: str
    group: str
    mode: str
    is_folder: bool

    @property
    def look(self) -> str:
        """As `stat -c '%F %U %G %04a'` prints it, but for an empty file."""
        kind = "directory" if self.is_folder else "regular file"
        return f"{kind} {self.owner} {self.group} {self.mode}"

    def is_read_by(self, user: str) -> bool:
        """Whether owner, group and mode let a user read it whose one group is called as it is."""
        digits = [int(digit, 8) for digit in self.mode[-3:]]
        digit = digits[0 if user == self.owner else 1 if user == self.group else 2]
        return bool(digit & 4)


def _expand(row: SecretPath) -> Iterator[SecretPath]:
    for word, values in _ALTERNATIVES.items():
        if word in row.path:
            yield from (replace(row, path=row.path.replace(word, value)) for value in values)
            return
    yield row


def read_table() -> list[SecretPath]:
    """Every line of the table. Fails the test at one that is written in another way."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    found: list[SecretPath] = []
    for line in lines[2:]:
        match = _ROW.match(line)
        assert match, line
        place, path, condition, owner, group, mode = (part.strip() for part in match.groups())
        row = SecretPath(place, path.rstrip("/"), condition, owner, group, mode, path.endswith("/"))
        found += _expand(row)
    assert len(found) > 30
    return found


def check_node(node: Node, places: set[str], conditions: set[str]) -> None:
    """Fails the test unless a node has what the table says of such hosts, and nothing else."""
    rows = [row for row in read_table() if row.place in {*places, "every host"}]
    for row in rows:
        if row.condition in {"always", *conditions}:
            assert _look_at(node, row.path) == row.look, row.path
        elif row.condition == "a rotation":
            assert _look_at(node, row.path) in {row.look, ""}, row.path
        else:
            assert _look_at(node, row.path) == "", row.path
    known = {row.path for row in rows}
    unknown = (_find_closed(node) | _find_secrets(node)) - known
    assert not unknown, f"not in the table: {sorted(unknown)}"


def _look_at(node: Node, path: str) -> str:
    """What a path is, as ``SecretPath.look`` has it; empty when it isn't there."""
    look = node.try_run("stat", "-c", "%F %U %G %04a", path).stdout.strip()
    return look.replace("regular empty file", "regular file")


def _find_closed(node: Node) -> set[str]:
    """What isn't for everyone to read. Metrics and what worked last lie in folders of the table."""
    return set(
        node.shell(
            "find /etc/sealrelay /etc/postgresql/sealrelay /var/lib/sealrelay /opt/sealrelay "
            "-path /opt/sealrelay/good -print -prune -o ! -type l ! -perm -004 -print "
            "2>/dev/null || true; find /run/sealrelay-* -maxdepth 0"
        ).splitlines()
    )


def _find_secrets(node: Node) -> set[str]:
    look = f"sed '{_LEAVE_OUT}' \"$file\" | grep -qE '{_KEY_LINE}' && echo \"$file\""
    return set(
        node.shell(
            "find /etc/sealrelay /etc/postgresql/sealrelay /var/lib/sealrelay /opt/sealrelay/good "
            "-type f 2>/dev/null | while IFS= read -r file; do "
            f"{look} || true; done"
        ).splitlines()
    )
