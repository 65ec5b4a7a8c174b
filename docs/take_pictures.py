"""Takes the pictures of the README and the docs, of a real deployment. Run it as bin/pictures.

Each is kept with a digest of what it shows, so that a test can tell when it is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from tests.support.browser import Browser

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "docs" / "pictures"
RECORD = FOLDER / "made_from.json"
"""For each picture the digest of what it showed."""

_COORDINATOR = "https://198.18.71.11:8000"
_COLUMNS = 120
_INDENT = 14
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MAKES_KEYS = re.compile(r"TASK \[((?:ca|certificate|payload_keys) : .+?)\]")
_DIM = "\x1b[2m{}\x1b[0m"


class Tour:
    """A lab node that is deployed to for the first time."""

    def __init__(self, scratch: Path) -> None:
        """``scratch``: a folder for what is not kept. Nothing is deployed yet."""
        self._scratch = scratch
        self.deployment: list[str] = []
        """What the first deployment said."""

    def deploy(self) -> None:
        """Make the node, and deploy to it."""
        run("bin/lab", "up", "--disk", "node1")
        self.deployment = play("site.yml")

    def browser(self) -> Browser:
        """One with the operator's leaf."""
        leaf = Path(tempfile.mkdtemp(dir=self._scratch))
        for name in ("ca.pem", "cert.pem", "key.pem"):
            with (leaf / name).open("w") as copy:
                copy.write(run("bin/lab", "shell", "node1", f"cat /etc/sealrelay/operator/{name}"))
        return Browser(leaf / "browser", _COORDINATOR, leaf / "ca.pem", leaf)

    def hold_game_day(self) -> Path:
        """Break it in every way; the folder of the report."""
        reports = Path(tempfile.mkdtemp(dir=self._scratch))
        play("playbooks/game_day.yml", "-e", f"failover_check_report_dir={reports}")
        (folder,) = reports.iterdir()
        return folder

    @contextmanager
    def load(self) -> Iterator[None]:
        """Messages from both clients meanwhile, for a quarter of a minute before and after."""
        clients = "--client client1 --client client2"
        line = f"sealrelay load $(mktemp -d)/history.jsonl {clients} --rate 100 --seconds 30 -q"
        with subprocess.Popen(
            ["bin/lab", "shell", "node1", line], cwd=REPOSITORY, stdout=subprocess.DEVNULL
        ) as load:
            time.sleep(15)
            yield
            assert load.wait() == 0


@dataclass(frozen=True)
class Picture:
    """One picture, and what it shows of the repository."""

    file: str
    title: str
    take: Callable[[Tour, Picture], None]
    shows: tuple[str, ...] = ()
    """Patterns of the files that decide what is seen."""
    text: Callable[[], str] = str
    """What is seen, where it isn't a file's content that decides."""

    @property
    def path(self) -> Path:
        return FOLDER / self.file

    def digest(self) -> str:
        """Of all that it shows, as of now."""
        parts = hashlib.sha256(self.text().encode())
        for pattern in self.shows:
            found = sorted(path for path in REPOSITORY.glob(pattern) if path.is_file())
            if not found:
                raise FileNotFoundError(f"{self.file} shows {pattern}, which is nowhere")
            for path in found:
                parts.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
        return parts.hexdigest()

    def draw_terminal(self, lines: Iterable[str]) -> None:
        """Draw what a terminal showed, colours included, as an SVG that loads nothing."""
        shown = list(lines)
        columns = max(len(_COLOUR.sub("", line)) for line in shown)
        console = Console(record=True, width=min(columns, _COLUMNS), file=io.StringIO())
        for line in shown:
            console.print(Text.from_ansi(line))
        drawn = console.export_svg(title=self.title, theme=DIMMED_MONOKAI, unique_id=self.path.stem)
        drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
        self.path.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n")


def take_keys(tour: Tour, picture: Picture) -> None:
    leaf = "/etc/sealrelay/clients/client1"
    picture.draw_terminal(
        [
            _DIM.format("$") + " ansible-playbook -i inventory/lab site.yml",
            *select_what_makes_keys(tour.deployment),
            *on_node(f"openssl x509 -in {leaf}/cert.pem -noout -issuer -dates -ext subjectAltName"),
            *on_node(f"ls -l {leaf}"),
        ]
    )


def take_services(_: Tour, picture: Picture) -> None:
    picture.draw_terminal(
        [
            *on_node("systemctl --no-legend --plain list-units 'sealrelay*'"),
            *on_node("ss -Hltn 'sport = :5001 or sport = :5002 or sport = :8000'"),
            *on_node("systemctl status -n 3 sealrelay-coordinator", SYSTEMD_COLORS="16"),
        ]
    )


def take_clients(_: Tour, picture: Picture) -> None:
    picture.draw_terminal(
        [
            *on_node("sealrelay send --client client1 -v 'Hello from client1'"),
            *on_node("sealrelay send --client client2 -v 'Hello from client2'"),
            *on_node("journalctl -u 'sealrelay-server@*' -o cat -n 2 -g Decrypted"),
        ]
    )


def take_failover(_: Tour, picture: Picture) -> None:
    lines = play("playbooks/failover_check.yml")
    said = next(number for number, line in enumerate(lines) if "Say what was seen" in line)
    picture.draw_terminal(
        [
            _DIM.format("$") + " ansible-playbook -i inventory/lab playbooks/failover_check.yml",
            *(line for line in lines[:said] if "changed:" in line or "TASK [" in line),
            *lines[said:],
        ]
    )


def take_status(tour: Tour, picture: Picture) -> None:
    with tour.load():
        shutil.copy(tour.browser().take_picture(f"{_COORDINATOR}/status"), picture.path)


def take_report(tour: Tour, picture: Picture) -> None:
    folder = tour.hold_game_day()
    shutil.copy(
        tour.browser().take_picture(f"file://{folder}/report.html", height=2480), picture.path
    )


def take_tree(_: Tour, picture: Picture) -> None:
    picture.draw_terminal(draw_tree().splitlines())


def select_what_makes_keys(lines: list[str]) -> Iterator[str]:
    """Of a deployment's output each task that made a certificate or a key, once."""
    task, seen = "", {""}
    for line in lines:
        plain = _COLOUR.sub("", line)
        if " [" in plain and plain.endswith("*"):
            found = _MAKES_KEYS.match(plain)
            task = found[1] if found else ""
        elif plain.startswith("changed:") and task not in seen:
            seen.add(task)
            yield f"TASK [{task}]"
            yield line
    yield _DIM.format("…")
    yield ""


def draw_tree() -> str:
    """What is in the repository, two levels deep."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    tree: dict[str, set[str]] = {}
    for path in map(Path, listed.stdout.splitlines()):
        below = tree.setdefault(path.parts[0], set())
        below.update(part + "/" * (len(path.parts) > 2) for part in path.parts[1:2])
    lines = [
        "  ".join(name for name, below in sorted(tree.items()) if not below and name[0] != ".")
    ]
    for name, below in sorted(tree.items()):
        if below and not name.startswith("."):
            head = f"{name}/".ljust(_INDENT)
            text = "  ".join(sorted(below))
            folded = textwrap.wrap(
                head + text, _COLUMNS, subsequent_indent=" " * _INDENT, break_on_hyphens=False
            )
            lines += [f"\x1b[34m{folded[0][:_INDENT]}\x1b[0m{folded[0][_INDENT:]}", *folded[1:]]
    return "\n".join(lines)


PICTURES = {
    picture.file: picture
    for picture in (
        Picture(
            "keys.svg",
            "The deployment makes certificates and keys",
            take_keys,
            ("roles/ca/tasks/*", "roles/certificate/tasks/*", "roles/payload_keys/tasks/*"),
        ),
        Picture(
            "services.svg",
            "What runs",
            take_services,
            ("roles/server/templates/*", "roles/coordinator/templates/*"),
        ),
        Picture(
            "clients.svg",
            "Two clients, and what their messages became",
            take_clients,
            ("app/src/sealrelay/cli/send.py",),
        ),
        Picture(
            "failover.svg",
            "The failover check",
            take_failover,
            tuple(
                f"roles/failover_check/tasks/{name}.yml"
                for name in ("preflight", "prove", "take_over", "restore", "return", "report")
            ),
        ),
        Picture(
            "status.png",
            "The status page",
            take_status,
            ("app/src/sealrelay/page.py", "app/src/sealrelay/templates/*"),
        ),
        Picture(
            "report.png",
            "The game day's report",
            take_report,
            ("roles/failover_check/files/game_day/*", "roles/failover_check/vars/main/faults.yml"),
        ),
        Picture("tree.svg", "The project", take_tree, text=draw_tree),
    )
}


def run(*command: str, **variables: str) -> str:
    """Run a command here. Ends this program, with what the command said, when it fails."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def play(playbook: str, *arguments: str) -> list[str]:
    """What a playbook says, in colour."""
    command = (".venv/bin/ansible-playbook", "-i", "inventory/lab", playbook, *arguments)
    return run(*command, ANSIBLE_FORCE_COLOR="1").splitlines()


def on_node(line: str, **variables: str) -> list[str]:
    """A command as typed on the node, and what it printed."""
    plain = {"SYSTEMD_COLORS": "0", "SYSTEMD_URLIFY": "0", "SYSTEMD_PAGER": "", "COLUMNS": "120"}
    given = " ".join(f"{name}={value}" for name, value in {**plain, **variables}.items())
    out = run("bin/lab", "shell", "node1", f"export {given}; {line}")
    return [f"{_DIM.format('node1 #')} {line}", *out.rstrip("\n").splitlines(), ""]


def main() -> None:
    """Take the pictures that are named, or all, and note what each shows."""
    parser = argparse.ArgumentParser(prog="bin/pictures", description=__doc__)
    parser.add_argument("picture", nargs="*", help=f"{', '.join(PICTURES)}; default: all")
    wanted = parser.parse_args().picture or list(PICTURES)
    if unknown := sorted(set(wanted) - set(PICTURES)):
        parser.error(f"there is no picture {', '.join(unknown)}; there are {', '.join(PICTURES)}")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    digests = {file: PICTURES[file].digest() for file in wanted}
    with tempfile.TemporaryDirectory() as scratch:
        tour = Tour(Path(scratch))
        if any(PICTURES[file].shows for file in wanted):  # others are drawn of the repository
            tour.deploy()
        for file, digest in digests.items():
            print(f"pictures: {file}", flush=True)
            PICTURES[file].take(tour, PICTURES[file])
            record[file] = digest
            RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
