"""A million messages through a coordinator and two servers: does memory grow?

Messages go in rounds, each over new connections, as fast as they are taken. Memory is read after
each round. The first tenth is for caches and arenas to fill; from there on a straight line through
the readings tells the growth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from benchmarks.load import make_load, wait_for_relay
from benchmarks.peers import Sealrelay
from benchmarks.processes import memory_mib
from benchmarks.spec import LoadSpec
from benchmarks.tally import count_lost
from benchmarks.testbed import Testbed

_WARM = 0.1
"""Share of the messages after which growth counts."""
_NEVER = 24 * 3600.0


def run(messages: int, round_size: int, connections: int, folder: Path) -> dict[str, object]:
    """The whole measurement; see the module."""
    testbed = Testbed(folder)
    sent = failed = lost = 0
    readings: list[tuple[int, dict[str, float]]] = []
    began = time.monotonic()
    with testbed.measurement() as measurement, Sealrelay().run(testbed, measurement) as relay:
        wait_for_relay(relay, testbed.clients[0])
        processes = {"coordinator": relay.program.processes} | {
            server.name: server.processes for server in measurement.servers
        }
        for number in count(1):
            spec = LoadSpec(
                port=relay.port,
                clients=testbed.clients,
                connections=connections,
                messages=min(round_size, messages - sent),
                payload_bytes=256,
                seconds=_NEVER,
            )
            with make_load(spec) as load:
                load.begin()
                answers = load.result().answers
            sent += len(answers)
            failed += sum(answer.status != 200 for answer in answers)
            memory = {name: memory_mib(of, own=True) for name, of in processes.items()}
            readings.append((sent, memory))
            rate = sent / (time.monotonic() - began)
            sys.stderr.write(f"round {number}: {sent} sent, {rate:.0f}/s, {memory}\n")
            if sent >= messages or not answers:
                break
        lost = count_lost(answers, measurement.stored())
    return {
        "messages": sent,
        "failed": failed,
        "lost_of_last_round": lost,
        "seconds": round(time.monotonic() - began),
        "own_mib": {
            name: describe([(at, values[name]) for at, values in readings], messages)
            for name in processes
        },
    }


def describe(readings: Sequence[tuple[int, float]], messages: int) -> dict[str, float]:
    """What memory did from the first tenth on: (messages so far, MiB)."""
    warm = [(at, mib) for at, mib in readings if at >= _WARM * messages]
    return {
        "first": readings[0][1],
        "at_a_tenth": warm[0][1],
        "end": warm[-1][1],
        "most": max(mib for _, mib in readings),
        "growth_per_million": round(1_000_000 * slope(warm), 2),
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that fits best (least squares); 0 for a single point."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    if not spread:
        return 0.0
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--round", type=int, default=20_000, help="messages in a round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="for the store, on a real disk")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = run(options.messages, options.round, options.connections, Path(folder) / "soak")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
