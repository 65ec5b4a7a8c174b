"""What a deployment is measured on: a lab node of its own, checkouts, and programs that are ended.

Whatever is started here ends with this process: programs have sessions of their own, which are
ended by their ids, and the lab is taken down by its name.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks.play_times import cut_end

REPOSITORY = Path(__file__).parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NODE = "node1"
_PATIENCE = 3600.0
"""Seconds after which a program is taken for stuck."""
_SAY_EVERY = 60.0


class MeasurementFailed(Exception):
    """What was to be measured did not work; the text says what, with the end of its output."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP. The text is the signal's name."""


@dataclass(frozen=True)
class Ended:
    """A program that ended by itself, or was stopped: then ``code`` is None."""

    code: int | None
    seconds: float
    cpu_seconds: float
    output: str


def say(text: str) -> None:
    """Write a line of progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


# A session of its own: a Ctrl-C reaches this process only, which then ends the program itself.
def run_program(
    command: Sequence[str | Path],
    folder: Path,
    *,
    what: str,
    environment: dict[str, str] | None = None,
    is_void: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a program until it ends, or until ``is_void`` says that its time is of no use."""
    with tempfile.TemporaryFile() as log:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment or plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = _wait(process, log.fileno(), what, is_void)
        finally:
            _end_session(process)
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        log.seek(0)
        output = log.read().decode(errors="replace")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(process.returncode if ended else None, seconds, used, output)


def _wait(
    process: subprocess.Popen[bytes], log: int, what: str, is_void: Callable[[], bool]
) -> bool:
    """Whether it ended by itself; raises MeasurementFailed when it takes too long."""
    began = said = time.monotonic()
    while True:
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if is_void():
                return False
            if now - began > _PATIENCE:
                raise MeasurementFailed(f"{what} has not ended in {_PATIENCE:.0f} s") from None
            if now - said >= _SAY_EVERY:
                said = now
                say(f"  {what}: {now - began:.0f} s so far{_last_task(log)}")
        else:
            return True


def _last_task(log: int) -> str:
    size = os.fstat(log).st_size
    tail = os.pread(log, 20000, max(0, size - 20000)).decode(errors="replace")
    tasks = re.findall(r"^(?:TASK|RUNNING HANDLER) \[(.*)\] \*", tail, re.M)
    return f", at '{tasks[-1]}'" if tasks else ""


def _end_session(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        # What sudo runs is not ours to end; it ends with what it waits for.
        try:
            os.killpg(process.pid, number)
            process.wait(15)
        except (PermissionError, ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def plain_environment() -> dict[str, str]:
    """Ours, without what would change what a playbook does or costs."""
    dropped = re.compile(
        r"ANSIBLE_|PROFILE_TASKS_|MOLECULE_|SEALRELAY_|PYTHONPATH$|PYTHONDONTWRITEBYTECODE$|LC_|LANG"
    )
    kept = {key: value for key, value in os.environ.items() if not dropped.match(key)}
    return {**kept, "LC_ALL": "C.UTF-8"}


# --- checkouts


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LookupError(done.stderr.strip() or f"git {arguments[0]} failed")
    return done.stdout.strip()


def describe_commit(folder: Path) -> str:
    """The commit of a checkout, with ``+`` when files differ from it; empty without git."""
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + "+" * bool(_git(folder, "status", "--porcelain"))
    except LookupError:
        return ""


@contextmanager
def open_against(name: str) -> Iterator[Path]:
    """The folder of a checkout, given as such or as a commit of this repository.

    Of a commit a clone is made, which is removed afterwards.
    """
    folder = Path(name)
    if folder.is_dir():
        for part in ("site.yml", "ansible.cfg", "roles", "playbooks", "inventory/lab/hosts.yml"):
            if not (folder / part).exists():
                raise SystemExit(f"--against: {name} is no checkout of this project: no {part}")
        yield folder.resolve()
        return
    try:
        commit = _git(REPOSITORY, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except LookupError:
        raise SystemExit(
            f"--against: '{name}' is neither a folder nor a commit of this repository"
        ) from None
    with tempfile.TemporaryDirectory(prefix="sealrelay-against-") as scratch:
        clone = Path(scratch) / "checkout"
        try:
            _git(REPOSITORY, "clone", "--quiet", "--shared", "--no-checkout", ".", str(clone))
            _git(clone, "checkout", "--quiet", "--detach", commit)
        except LookupError as error:
            raise SystemExit(f"--against: cannot check out {name}: {error}") from None
        wheels = REPOSITORY / ".wheelhouse" / "wheels"
        if wheels.is_dir():
            shutil.copytree(wheels, clone / ".wheelhouse" / "wheels")
        yield clone


def list_wheelhouse(checkout: Path) -> set[str]:
    """The finished files that a deployment leaves in a checkout for the next one."""
    found = checkout.glob(".wheelhouse/*/*")
    return {str(path.relative_to(checkout)) for path in found if path.is_file()}


# --- the lab


class Lab:
    """A lab of our own with one node, which is made anew for each deployment."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._program = REPOSITORY / "bin" / "lab"

    def check_free(self) -> None:
        """Raises SystemExit when there is such a lab already."""
        if self._status()["nodes"]:
            raise SystemExit(
                f"The lab '{self.name}' is up already, from another run perhaps. Take it down with "
                f"`bin/lab --name {self.name} down`, or choose another --name."
            )

    @contextmanager
    def fresh_node(self, checkout: Path) -> Iterator[Site]:
        """A node that has just booted, and an inventory for it; both are removed afterwards."""
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sr-")))
            stack.callback(self.take_down)
            self._run("up", _NODE)
            (node,) = self._status()["nodes"]
            inventory = scratch / "inventory"
            inventory.mkdir()
            lab_inventory = checkout / "inventory" / "lab"
            hosts = rewrite_inventory(
                (lab_inventory / "hosts.yml").read_text(), self.name, node["address"]
            )
            (inventory / "hosts.yml").write_text(hosts)
            (inventory / "group_vars").symlink_to(lab_inventory / "group_vars")
            self._run("passphrase", str(inventory / "pki" / "passphrase"))
            # Not the usual folder: there a connection to the node before may be left.
            sockets = scratch / "ssh"
            sockets.mkdir()
            stack.callback(close_connections, sockets)
            yield Site(checkout, inventory, sockets)

    def take_down(self) -> None:
        """Remove the node; no signal keeps this from its end."""
        with held_signals():
            done = subprocess.run(
                [self._program, "--name", self.name, "down"],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                say(f"the lab '{self.name}' is still there: {done.stderr.strip()}")

    def _run(self, *arguments: str) -> str:
        command = [self._program, *(("--name", self.name) if arguments[0] != "passphrase" else ())]
        done = run_program([*command, *arguments], REPOSITORY, what=f"bin/lab {arguments[0]}")
        if done.code:
            raise MeasurementFailed(
                f"bin/lab {' '.join(arguments)} failed:\n{cut_end(done.output)}"
            )
        return done.output

    def _status(self) -> dict[str, list[dict[str, str]]]:
        status: dict[str, list[dict[str, str]]] = json.loads(self._run("status", "--json"))
        return status


@dataclass(frozen=True)
class Site:
    """Where a checkout deploys to."""

    checkout: Path
    inventory: Path
    sockets: Path
    """Folder of the shared SSH connections."""


def rewrite_inventory(hosts: str, lab: str, address: str) -> str:
    """The text of inventory/lab/hosts.yml for another lab's node. Raises MeasurementFailed."""
    hosts, configurations = re.subn(
        r"(/sealrelay-lab/)[a-z0-9-]+(/ssh_config)", rf"\1{lab}\2", hosts
    )
    hosts, addresses = re.subn(r"\b198\.18\.\d+\.11\b", address, hosts)
    if (configurations, addresses) != (1, 1):
        raise MeasurementFailed("inventory/lab/hosts.yml does not name one lab and one node")
    return hosts


def close_connections(sockets: Path) -> None:
    """End the SSH connections that playbooks left open for the next one."""
    for socket in sockets.iterdir():
        subprocess.run(
            ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", _NODE],
            capture_output=True,
            check=False,
        )


@contextmanager
def held_signals() -> Iterator[None]:
    """Let nothing interrupt until this is over; what came meanwhile interrupts then."""
    came: list[int] = []
    with _handled(lambda number, _frame: came.append(number)):
        yield
    if came:
        raise Interrupted(signal.Signals(came[0]).name)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raise Interrupted for what would end this process without its cleaning up."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)

    with _handled(interrupt):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
