"""Open loop: messages at a fixed rate, and one fault in the middle."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.faults import FAULTS, delayed_first_server
from benchmarks.load import make_load, sleep_until, wait_for_relay
from benchmarks.peers import Peer
from benchmarks.spec import Answer, LoadSpec
from benchmarks.tally import Fate, judge
from benchmarks.testbed import Measurement, Testbed

_CONNECTIONS = 32
"""Open from the start; where they are all waiting, more are opened."""
_DRAIN = 20.0
_STORED = re.compile(r"(Stored|Replayed) message ([0-9a-f]{64}) from")
_FENCED = re.compile(r"Ended process \d+, which was stopped while it kept the store")


@dataclass(frozen=True)
class Plan:
    """Times in seconds; ``rate`` in messages a second."""

    faults: Sequence[str]
    rounds: int
    rate: float
    before: float
    during: float
    after: float
    payload_bytes: int

    @property
    def seconds(self) -> float:
        """How long the load lasts."""
        return self.before + self.during + self.after


@dataclass(frozen=True)
class Trial:
    """One relay under one fault, once."""

    peer: str
    fault: str
    fate: Fate
    offered: float
    """How many times a message was handed to a server, on average."""
    fenced: int
    """Servers that were ended because they were frozen while they kept the store."""
    answers: list[Answer]


def try_faults(
    testbed: Testbed, peers: Sequence[Peer], plan: Plan, tell: Callable[[Trial], None]
) -> list[Trial]:
    """Try every fault on every relay, in rounds that go the other way round each time."""
    trials = []
    for number in range(plan.rounds):
        for fault in plan.faults:
            for peer in peers if number % 2 == 0 else reversed(peers):
                trial = _try_one(testbed, peer, fault, plan)
                tell(trial)
                trials.append(trial)
    return trials


def _try_one(testbed: Testbed, peer: Peer, fault: str, plan: Plan) -> Trial:
    with ExitStack() as stack:
        measurement = stack.enter_context(testbed.measurement())
        ports = None
        if fault == "slow":
            ports = stack.enter_context(delayed_first_server(measurement))
        relay = stack.enter_context(peer.run(testbed, measurement, ports))
        wait_for_relay(relay, testbed.clients[0])
        spec = LoadSpec(
            port=relay.port,
            clients=testbed.clients,
            connections=_CONNECTIONS,
            messages=int(plan.seconds * plan.rate) * len(testbed.clients),
            payload_bytes=plan.payload_bytes,
            seconds=plan.seconds,
            rate=plan.rate,
            drain=_DRAIN,
        )
        with make_load(spec) as load:
            began = load.begin()
            sleep_until(began + plan.before)
            with FAULTS[fault](measurement):
                sleep_until(began + plan.before + plan.during)
            answers = load.result().answers
        rows = measurement.stored()
        inserted, handed, fenced = _read_logs(measurement)
    ids = {answer.message_id for answer in answers}
    return Trial(
        peer=peer.name,
        fault=fault,
        fate=judge(answers, rows, inserted, plan.before),
        offered=sum(count for message_id, count in handed.items() if message_id in ids) / len(ids),
        fenced=fenced,
        answers=answers,
    )


def _read_logs(measurement: Measurement) -> tuple[Counter[str], Counter[str], int]:
    """From the servers' logs: how often each message was inserted, and handed over at all; and how
    many servers were ended while frozen."""
    inserted: Counter[str] = Counter()
    handed: Counter[str] = Counter()
    fenced = 0
    for server in measurement.servers:
        log = server.log
        fenced += len(_FENCED.findall(log))
        for result, message_id in _STORED.findall(log):
            handed[message_id] += 1
            inserted[message_id] += result == "Stored"
    if not inserted:
        raise RuntimeError("the servers' logs name no stored message; correct the pattern")
    return inserted, handed, fenced
