"""What an operation costs those who send meanwhile: a playbook, again and again, under load.

One load runs throughout. Spells of three kinds take turns under it: ``quiet``; ``idle``, a playbook
that finds nothing to do (what Ansible itself costs a host, and here the same machine); and
``operation``, the playbook in question. So the three are compared side by side, and in the end the
store has to bear out every message of all of them.

Clients are on other hosts in life. Here the load shares the node's processors, so it goes before
what Ansible computes there; else its own lateness would be taken for the relay's. A lab node has no
control groups to weigh processors by, so what the services' ``CPUWeight=`` does elsewhere is done
with the niceness of their sessions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tally import percentile
from tests.support.loads import Load
from tests.support.node import Control, Node

OPERATIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "leaves": ("rotate_certificates.yml", {}),
    "leaf": ("rotate_certificates.yml", {"name": "client1", "revoke_replaced": True}),
    "ca": ("rotate_ca.yml", {}),
    "payload_keys": ("rotate_payload_keys.yml", {"payload_keys_retire_now": True}),
}
"""A playbook and its variables, by what is rotated."""

_IDLE = "renew.yml"
_SERVICES = ("sealrelay-server@5001", "sealrelay-server@5002", "sealrelay-coordinator")
_SETTLE = 2.0
"""Seconds after a spell that belong to none."""


@dataclass(frozen=True)
class Spell:
    """A time of one kind; both ends in seconds since the epoch."""

    kind: str
    began: float
    ended: float


class Spells:
    """Keeps what took place when."""

    def __init__(self) -> None:
        self.done: list[Spell] = []

    @contextmanager
    def spell(self, kind: str) -> Iterator[None]:
        began = time.time()
        yield
        self.done.append(Spell(kind, began, time.time()))
        time.sleep(_SETTLE)


def run(
    node: Node, control: Control, operation: str, *, times: int, rate: int, quiet: float
) -> dict[str, object]:
    """The whole measurement; see the module."""
    playbook, variables = OPERATIONS[operation]
    spells = Spells()
    _let_come_first(node)
    folder = node.run("mktemp", "-d").strip()
    try:
        with Load(node, folder, rate=rate, seconds=24 * 3600, elsewhere=True) as load:
            time.sleep(_SETTLE)
            for number in range(1, times + 1):
                with spells.spell("quiet"):
                    time.sleep(quiet)
                with spells.spell("idle"):
                    _play(control, _IDLE, {})
                with spells.spell("operation"):
                    _play(control, playbook, variables)
                took = spells.done[-1].ended - spells.done[-1].began
                sys.stderr.write(f"{operation} {number} of {times}: {took:.0f} s\n")
        verified = node.try_run("sealrelay", "verify", "--json", load.path, timeout=600)
        history = load.history
    finally:
        node.run("rm", "-rf", folder)
    verdict = json.loads(verified.stdout)
    return {
        "operation": operation,
        "times": times,
        "rate": rate,
        "store_bears_it_out": verified.returncode == 0,
        "sent": verdict["sent"],
        "failed": verdict["sent"] - verdict["acknowledged"],
        "lost": len(verdict["lost"]),
        "doubled": len(verdict["doubled"]),
        "latency": describe(history, spells.done),
    }


def describe(
    history: Sequence[Mapping[str, Any]], spells: Sequence[Spell]
) -> dict[str, dict[str, float]]:
    """Latency in milliseconds by the kind of spell in which a message was due."""
    began = history[0]["began"]
    due = {line["number"]: line["due"] for line in history if line["event"] == "sent"}
    latencies: dict[str, list[float]] = {spell.kind: [] for spell in spells}
    for line in history:
        if line["event"] == "answered":
            at = due[line["number"]]
            for spell in spells:
                if spell.began <= began + at < spell.ended:
                    latencies[spell.kind].append((line["answered"] - at) * 1000)
    return {
        kind: {
            "messages": len(found),
            "p50_ms": round(percentile(found, 0.5), 1),
            "p90_ms": round(percentile(found, 0.9), 1),
            "p99_ms": round(percentile(found, 0.99), 1),
            "worst_ms": round(max(found), 1),
        }
        for kind, found in latencies.items()
    }


def _let_come_first(node: Node) -> None:
    for unit in _SERVICES:
        for pid in node.pids(unit):
            # where the kernel groups processes by session; elsewhere Nice= does it
            node.try_run("sh", "-c", f"echo -10 >/proc/{pid}/autogroup")


def _play(control: Control, playbook: str, variables: dict[str, Any]) -> None:
    play = control.play(f"playbooks/{playbook}", variables=variables)
    if play.code != 0:
        raise SystemExit(f"{play.out}\n{playbook} failed with exit code {play.code}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__)
    parser.add_argument("operation", choices=sorted(OPERATIONS))
    parser.add_argument("--inventory", type=Path, required=True, help="of a deployed lab node")
    parser.add_argument("--lab", default="lab", help="the lab's name (default: %(default)s)")
    parser.add_argument("--node", default="node1", help="(default: %(default)s)")
    parser.add_argument("--times", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--rate", type=int, default=100, help="messages a second, default 100")
    parser.add_argument("--quiet", type=float, default=15.0, help="seconds, default 15")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        node = Node(options.lab, options.node, Path(folder))
        try:
            result = run(
                *(node, Control(options.inventory), options.operation),
                times=options.times,
                rate=options.rate,
                quiet=options.quiet,
            )
        except subprocess.TimeoutExpired as error:
            raise SystemExit(f"took too long: {error}") from None
        finally:
            node.disconnect()
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if not result["store_bears_it_out"] or result["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
