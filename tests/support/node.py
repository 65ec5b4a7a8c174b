"""A lab node over SSH, and the playbooks that are run against it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = REPOSITORY / "tests" / "lab" / "programs"
SERVERS = ("sealrelay-server@5001.service", "sealrelay-server@5002.service")
COORDINATOR = "sealrelay-coordinator.service"
SOCKET = "sealrelay-coordinator.socket"
UNITS = (*SERVERS, COORDINATOR, SOCKET)
_PATIENCE = 180.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = _PATIENCE) -> None:
    """Wait for a condition. Fails the test when ``what`` did not happen in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


class Node:
    """One node of a lab, reached as root with the lab's own SSH configuration."""

    def __init__(self, lab: str, name: str, control: Path) -> None:
        """``control`` is a folder for the socket of the shared connection; its path is short."""
        self.lab, self.name = lab, name
        config = Path("/var/lib/sealrelay-lab") / lab / "ssh_config"
        self._ssh = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        self._ssh += ["-o", f"ControlPath={control}/%C", "-o", "ControlMaster=auto"]
        self._ssh += ["-o", "ControlPersist=60", "-o", "ServerAliveInterval=5", name]

    def try_run(
        self, *argv: str, stdin: str | bytes = b"", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the node, whatever its exit code."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [*self._ssh, shlex.join(argv)],
            input=given,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out, err = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def run(self, *argv: str, stdin: str | bytes = b"", timeout: float = 120) -> str:
        """Run a program on the node and return what it prints. Fails the test if it fails."""
        done = self.try_run(*argv, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, (
            f"{shlex.join(argv)} on {self.name}: exit code {done.returncode}\n{done.stderr}"
        )
        return done.stdout

    def shell(self, script: str, timeout: float = 120) -> str:
        return self.run("sh", "-euc", script, timeout=timeout)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program on the node, connected to pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*self._ssh, shlex.join(argv)], stdin=pipe, stdout=pipe, stderr=pipe
        )

    def program(self, name: str, spec: object, timeout: float = 120) -> Any:
        """Run one of ``tests/lab/programs`` on the node: JSON in, JSON out."""
        # The system's own Python, and nothing of ours: these stand for other people's programs.
        source = (PROGRAMS / f"{name}.py").read_text()
        given = json.dumps(spec)
        return json.loads(self.run("python3", "-I", "-c", source, stdin=given, timeout=timeout))

    def read(self, path: str) -> str:
        return self.run("cat", "--", path)

    def write(self, path: str, content: str | bytes, mode: str = "0600") -> None:
        self.run("sh", "-c", 'umask 077; cat >"$0"; chmod "$1" "$0"', path, mode, stdin=content)

    def copy(self, source: Path, folder: str) -> str:
        """Copy the files of a folder of ours to a new folder of root's there; returns its path."""
        target = f"{folder}/{source.name}"
        self.run("install", "-d", "-m", "0700", target)
        for path in source.iterdir():
            self.write(f"{target}/{path.name}", path.read_bytes())
        return target

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") == "active"

    def pids(self, unit: str) -> list[int]:
        """Every process of a service."""
        listing = self.shell(f"grep -lFs '/{unit}' /proc/[0-9]*/cgroup || true")
        return [int(line.split("/")[2]) for line in listing.splitlines()]

    def now(self) -> str:
        """The node's time, as ``journal`` takes it.

        Not a cursor: up to systemd 254 journalctl loses the first line after a cursor when it
        shows one unit only.
        """
        return "@" + self.run("date", "+%s.%6N").strip()

    def journal(self, *units: str, since: str = "", lines: int = 0) -> str:
        """The messages of units (of all, if none is named), from a time on."""
        command = ["journalctl", "--no-pager", "--quiet", "--output=cat"]
        command += [f"--since={since}"] if since else []
        command += [f"--lines={lines}"] if lines else []
        return self.run(*command, *(f"--unit={unit}" for unit in units))

    def wait_for_journal(self, unit: str, text: str, since: str) -> None:
        wait_for(lambda: text in self.journal(unit, since=since), f"{unit} says {text!r}")

    def disconnect(self) -> None:
        subprocess.run([*self._ssh[:-1], "-O", "exit", self.name], capture_output=True, check=False)

    # --- sealrelay on it

    def try_send(
        self, *arguments: str, client: str = "client1", stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return self.try_run(
            "sealrelay", "send", "--client", client, "--json", *arguments, stdin=stdin
        )

    def send(self, *arguments: str, client: str = "client1") -> list[dict[str, Any]]:
        """Send messages; the receipts."""
        done = self.try_send(*arguments, client=client)
        assert done.returncode == 0, done.stderr
        return read_receipts(done.stdout)

    def settle(self) -> None:
        """Start what is stopped, and wait until the coordinator uses two servers at least."""
        self.run("systemctl", "start", *UNITS)
        wait_for(
            lambda: (
                len({receipt["served_by"] for receipt in self.send("--count", "8", "settle")})
                >= len(SERVERS)
            ),
            "two servers are in use",
        )

    def server_name(self, port: int) -> str:
        return f"{self.name}-{port}"


def read_receipts(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


class Sender:
    """A client on the node that sends a message every 20 ms for as long as the ``with`` lasts.

    On a slow machine as many as it can: what waits for it in the end keeps the test waiting.
    """

    _INTERVAL = 0.02
    _MOST_WAITING = 50

    def __init__(self, node: Node, client: str = "client1") -> None:
        self._node, self._client = node, client
        self._stop = threading.Event()
        self._sent = 0
        self._receipts: list[dict[str, Any]] = []
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._feed, self._collect)
        ]

    def __enter__(self) -> Sender:
        self._process = self._node.start(
            "sealrelay", "send", "--client", self._client, "--json", "-"
        )
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self._receipts) > 0, "the first message is acknowledged")
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._process.wait(60)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._errors = self._process.stderr.read().decode()
        self._process.stdout.close()
        self._process.stderr.close()

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            while not self._stop.wait(self._INTERVAL):
                if self._sent - self.count >= self._MOST_WAITING:
                    continue
                self._process.stdin.write(f"message {self._sent}\n".encode())
                self._process.stdin.flush()
                self._sent += 1
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it gave up; finish() says why

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._receipts.append(json.loads(line))

    @property
    def count(self) -> int:
        """How many messages are acknowledged so far."""
        return len(self._receipts)

    def wait_for_more(self, count: int = 10) -> None:
        """Wait until so many more messages are acknowledged."""
        target = self.count + count
        wait_for(lambda: self.count >= target, f"{count} more messages are acknowledged")

    def wait_for_server(self, name: str) -> None:
        """Wait until one more message is acknowledged that this server stored."""
        after = self.count
        wait_for(
            lambda: any(receipt["served_by"] == name for receipt in self._receipts[after:]),
            f"{name} stores a message",
        )

    def finish(self) -> list[dict[str, Any]]:
        """After the ``with``: fails the test unless every message was acknowledged."""
        assert self._process.returncode == 0, self._errors
        assert len(self._receipts) == self._sent
        return self._receipts


@dataclass(frozen=True)
class Play:
    """A run of ansible-playbook."""

    code: int
    out: str

    @property
    def changed(self) -> int:
        """How many tasks changed something."""
        return sum(map(int, re.findall(r"\bchanged=(\d+)", self.recap)))

    @property
    def changed_tasks(self) -> list[str]:
        """The names of the tasks that changed something."""
        parts = re.split(r"(?m)^TASK \[(.+)\] \*+$", self.out)
        return [
            name
            for name, told in zip(parts[1::2], parts[2::2], strict=True)
            if "\nchanged: " in told
        ]

    @property
    def recap(self) -> str:
        return self.out.partition("PLAY RECAP")[2]

    @property
    def text(self) -> str:
        """The output on one line, since a long sentence may be wrapped."""
        return " ".join(self.out.split())


class Control:
    """The control node: runs playbooks against one inventory."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory

    @property
    def pki(self) -> Path:
        return self.inventory / "pki"

    @property
    def passphrase(self) -> str:
        return (self.pki / "passphrase").read_text().strip()

    def play(
        self,
        playbook: str,
        *arguments: str,
        variables: dict[str, Any] | None = None,
        inventory: Path | None = None,
        timeout: float = 600,
    ) -> Play:
        """Run a playbook as a user would, whatever its exit code."""
        done = subprocess.run(
            self._command(playbook, variables or {}, inventory or self.inventory, *arguments),
            cwd=REPOSITORY,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Play(done.returncode, done.stdout)

    def start(self, playbook: str, variables: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start a playbook in a process group of its own, for whoever means to interrupt it."""
        return subprocess.Popen(
            self._command(playbook, variables, self.inventory),
            cwd=REPOSITORY,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @staticmethod
    def _command(
        playbook: str, variables: dict[str, Any], inventory: Path, *arguments: str
    ) -> list[str]:
        # A playbook ends with the tests, however those end.
        command = ["setpriv", "--pdeathsig", "KILL", _find_ansible_playbook()]
        command += ["-i", str(inventory)]
        if variables:
            command += ["-e", json.dumps(variables)]
        return [*command, *arguments, playbook]

    def deploy(self, *arguments: str, variables: dict[str, Any] | None = None) -> Play:
        return self.play("site.yml", *arguments, variables=variables)


def _find_ansible_playbook() -> str:
    beside = Path(sys.executable).with_name("ansible-playbook")
    found = str(beside) if beside.exists() else shutil.which("ansible-playbook")
    assert found, "there is no ansible-playbook beside this Python, nor on PATH"
    return found


def _plain_environment() -> dict[str, str]:
    """Ours without what molecule adds for its own runs, and with the repository's ansible.cfg."""
    added = re.compile(r"ANSIBLE_|MOLECULE_|PYTHONPATH$|SEALRELAY_")
    environment = {key: value for key, value in os.environ.items() if not added.match(key)}
    return {**environment, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "PAGER": "cat"}


def lab_command(lab: str, *arguments: str) -> str:
    done = subprocess.run(
        [REPOSITORY / "bin" / "lab", "--name", lab, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def find_secrets(text: str, secrets: Sequence[str]) -> list[str]:
    """Which of ``secrets`` are in a text; as a number and a length, so that none is printed."""
    found = [
        f"secret {number} ({len(secret)} characters)"
        for number, secret in enumerate(secrets)
        if secret in text
    ]
    if re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
        found.append("a private key block")
    return found
