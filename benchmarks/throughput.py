"""Closed loop: as many messages as a relay takes over a given number of connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.load import make_load, sleep_until, wait_for_relay
from benchmarks.peers import Peer
from benchmarks.processes import cpu_seconds
from benchmarks.spec import LoadSpec
from benchmarks.tally import count_lost, measure_throughput
from benchmarks.testbed import Testbed

_MOST_PER_SECOND = 16_000
"""Messages sealed for each second of a load; more than any relay takes, in its best second too."""


@dataclass(frozen=True)
class Plan:
    """Times in seconds."""

    connections: Sequence[int]
    rounds: int
    warm_up: float
    seconds: float
    payload_bytes: int


@dataclass(frozen=True)
class Sample:
    """One relay at one number of connections, measured once."""

    peer: str
    connections: int
    rps: float
    p50_ms: float
    p99_ms: float
    failed: int
    lost: int
    relay_cpu_ms: float
    """Processor time of the relay for one message."""
    servers_cpu_ms: float
    """Processor time of both servers together for one message."""
    generator_share: float
    """How much of one processor the load generator took, 0 to 1."""


def measure(
    testbed: Testbed, peers: Sequence[Peer], plan: Plan, tell: Callable[[Sample], None]
) -> list[Sample]:
    """Measure every relay at every number of connections, in rounds."""
    samples = []
    for peer, connections in _order(peers, plan):
        sample = _measure_one(testbed, peer, connections, plan)
        tell(sample)
        samples.append(sample)
    return samples


def _order(peers: Sequence[Peer], plan: Plan) -> Iterator[tuple[Peer, int]]:
    """Each round goes the other way round, so that no relay always comes after the same one."""
    for number in range(plan.rounds):
        for connections in plan.connections:
            for peer in peers if number % 2 == 0 else reversed(peers):
                yield peer, connections


def _measure_one(testbed: Testbed, peer: Peer, connections: int, plan: Plan) -> Sample:
    seconds = plan.warm_up + plan.seconds
    spec = LoadSpec(
        port=0,
        clients=testbed.clients,
        connections=connections,
        messages=int(seconds * _MOST_PER_SECOND) + connections,
        payload_bytes=plan.payload_bytes,
        seconds=seconds,
    )
    with testbed.measurement() as measurement, peer.run(testbed, measurement) as relay:
        wait_for_relay(relay, testbed.clients[0])
        of_relay = relay.program.processes
        of_servers = set().union(*(server.processes for server in measurement.servers))
        with make_load(msgspec.structs.replace(spec, port=relay.port)) as load:
            began = load.begin()
            sleep_until(began + plan.warm_up)
            before = cpu_seconds(of_relay), cpu_seconds(of_servers)
            sleep_until(began + seconds)
            after = cpu_seconds(of_relay), cpu_seconds(of_servers)
            result = load.result()
        rows = measurement.stored()
    if result.exhausted:
        raise RuntimeError("the sealed messages ran out; raise _MOST_PER_SECOND")
    found = measure_throughput(result.answers, plan.warm_up, seconds)
    messages = max(1.0, found.rps * plan.seconds)
    used = [(now - then) * 1000 / messages for then, now in zip(before, after, strict=True)]
    return Sample(
        peer=peer.name,
        connections=connections,
        rps=found.rps,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        failed=found.failed,
        lost=count_lost(result.answers, rows),
        relay_cpu_ms=used[0],
        servers_cpu_ms=used[1],
        generator_share=result.cpu_seconds / seconds,
    )
