"""What a good client feels of hostile connections that are held open on every port.

Two servers and a coordinator on loopback. A client sends at a fixed rate, first alone, then beside
the strangers; latencies count from the moment a message was due (no coordinated omission). Half of
the messages go over kept-alive connections, half over a new one each.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.processes import memory_mib
from tests.support import strangers
from tests.support.deployment import Deployment
from tests.support.http import make_context
from tests.support.pki import Authority, Leaf, spiffe_id
from tests.support.strangers import Party, Strangers

_SENDERS = 16
_SETTLE = 8.0
"""Seconds for the strangers to arrive, and for the first of them to be shown out."""


@dataclass(frozen=True)
class Figures:
    """Latencies of one kind of connection, in milliseconds."""

    sent: int
    failed: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


def make_parties(folder: Path, service: Door, number: int, sources: int) -> list[Party]:
    """``number`` strangers at one service, of every kind, from several addresses."""
    leaf = folder / "client-client2"
    without = make_context(leaf, with_leaf=False)
    foreign = make_context(leaf, with_leaf=False)
    foreign.load_cert_chain(folder / "foreign/cert.pem", folder / "foreign/key.pem")
    body_path = "/api/data" if service.kind == "coordinator" else "/api/batch"
    shares = [
        (strangers.silent(), 0.38),
        (strangers.half_hello(), 0.2),
        (strangers.slow_hello(), 0.2),
        (strangers.handshake(without), 0.01),
        (strangers.handshake(foreign), 0.01),
        (strangers.slow_head(leaf), 0.1),
        (strangers.slow_body(leaf, body_path), 0.1),
    ]
    return [
        Party(service.port, manners, round(number * share / sources), f"127.0.0.{10 + source}")
        for manners, share in shares
        for source in range(sources)
    ]


def attack(
    folder: Path,
    services: Sequence[Door],
    options: argparse.Namespace,
    stop: Event,
    report: multiprocessing.Queue[object],
) -> None:
    """Hold the strangers' connections until ``stop``, in a process of its own."""
    raise_descriptors()
    # They are somewhere else, and don't take the services' processor (sched(7)).
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    at_door = {
        service.name: make_parties(folder, service, options.connections, options.sources)
        for service in services
    }
    held: dict[str, list[int]] = {name: [] for name in at_door}  # a look a second
    everyone = [party for parties in at_door.values() for party in parties]
    with Strangers(*everyone, rate=options.arrivals, beat=2.0):
        while not stop.wait(1.0):
            for name, parties in at_door.items():
                held[name].append(sum(party.held for party in parties))
    report.put(
        {
            name: {
                # during the measurement, which ends just now
                "held": round(statistics.median(held[name][-int(options.seconds) :])),
                "opened": sum(party.opened for party in parties),
                "closed": sum(party.closed for party in parties),
                "failed": sum(party.failed for party in parties),
            }
            for name, parties in at_door.items()
        }
    )


class Sender:
    """A good client, as lean as can be, so that it measures the services and not itself."""

    def __init__(self, deployment: Deployment) -> None:
        self._context = make_context(deployment.folder / "client-client1")
        # as our own client's does; the default's first choice is refused, and takes a round more
        self._context.set_ecdh_curve("prime256v1")
        self._port = deployment.coordinator.port
        self._kept = self._connect()
        self._kept.connect()

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self._port, context=self._context, timeout=30
        )

    def send(self, token: str, *, new: bool) -> bool:
        """Send a message, on the kept-alive connection or on a new one. Whether it was stored."""
        connection = self._connect() if new else self._kept
        body = json.dumps({"data": token})
        try:
            connection.request("POST", "/api/data", body, {"Content-Type": "application/json"})
            return connection.getresponse().read() == b'{"result":"ok"}'
        except (OSError, http.client.HTTPException):
            connection.close()
            return False
        finally:
            if new:
                connection.close()


def measure(deployment: Deployment, rate: float, seconds: float) -> dict[str, Figures]:
    """Send at ``rate`` a second for ``seconds``; half kept-alive, half on new connections."""
    with deployment.client() as client:
        tokens = [client.seal(f"message {number}").text for number in range(int(rate * seconds))]
    numbered = iter(list(enumerate(tokens)))
    senders = [Sender(deployment) for _ in range(_SENDERS)]
    began = time.monotonic() + 0.1
    results: dict[bool, list[tuple[float, bool]]] = {False: [], True: []}

    def send(sender: Sender) -> None:
        for number, token in numbered:
            new = bool(number % 2)
            due = began + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            stored = sender.send(token, new=new)
            results[new].append((time.monotonic() - due, stored))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"kept_alive": summarize(results[False]), "new": summarize(results[True])}


def summarize(values: Sequence[tuple[float, bool]]) -> Figures:
    """The figures of some sends: (seconds, stored)."""
    times = sorted(1000 * seconds for seconds, _ in values)
    return Figures(
        sent=len(values),
        failed=sum(not stored for _, stored in values),
        p50_ms=round(times[len(times) // 2], 2),
        p99_ms=round(times[int(len(times) * 0.99)], 2),
        worst_ms=round(times[-1], 2),
    )


class Processor:
    """How much processor time processes get, and how long they wait for it, from here on.

    Where they wait for long, the machine is busy with something else, and so is what is measured.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._pids = {service.name: service.processes for service in deployment.services}
        self._began = time.monotonic()
        self._before = self._read()

    def shares(self) -> dict[str, dict[str, float]]:
        """For each service: the share of the time in which it computed, and waited to."""
        seconds = time.monotonic() - self._began
        return {
            name: {
                kind: round((now - then) / 1e9 / seconds, 2)
                for kind, now, then in zip(
                    ("computes", "waits"), now_of, self._before[name], strict=True
                )
            }
            for name, now_of in self._read().items()
        }

    def _read(self) -> dict[str, tuple[int, int]]:
        # nanoseconds on a processor and waiting for one (the kernel's scheduler/sched-stats)
        found = {}
        for name, pids in self._pids.items():
            texts = [Path(f"/proc/{pid}/schedstat").read_text().split() for pid in pids]
            found[name] = (sum(int(text[0]) for text in texts), sum(int(text[1]) for text in texts))
        return found


@dataclass(frozen=True)
class Door:
    """Where a service listens."""

    kind: str
    name: str
    port: int


def doors(deployment: Deployment) -> list[Door]:
    """Every service's door."""
    return [Door(service.kind, service.name, service.port) for service in deployment.services]


def raise_descriptors() -> None:
    """Let this process have as many file descriptors as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run(options: argparse.Namespace) -> dict[str, object]:
    """The whole measurement; see ``--help``."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        deployment = Deployment(Path(folder) / "deployment")
        stack.callback(deployment.stop)
        Authority("Foreign CA").issue(
            deployment.folder / "foreign", Leaf([spiffe_id("client", "client1")])
        )
        deployment.start()
        measure(deployment, options.rate, min(3.0, options.seconds))  # warms everything up
        processor = Processor(deployment)
        alone = measure(deployment, options.rate, options.seconds)
        alone_shares = processor.shares()
        spawn = multiprocessing.get_context("spawn")
        stop, report = spawn.Event(), spawn.Queue()
        process = spawn.Process(
            target=attack, args=(deployment.folder, doors(deployment), options, stop, report)
        )
        process.start()
        time.sleep(3 * options.connections / options.arrivals + _SETTLE)
        processor = Processor(deployment)
        beside = measure(deployment, options.rate, options.seconds)
        beside_shares = processor.shares()
        memory = {service.name: memory_mib(service.processes) for service in deployment.services}
        stop.set()
        told = report.get(timeout=60)
        process.join(60)
    return {
        "wanted_per_port": options.connections,
        "sources": options.sources,
        "rate": options.rate,
        "alone": {kind: asdict(figures) for kind, figures in alone.items()},
        "beside": {kind: asdict(figures) for kind, figures in beside.items()},
        "processor": {"alone": alone_shares, "beside": beside_shares},
        "memory_mib": memory,
        "strangers": told,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument(
        "--connections",
        type=int,
        default=2700,
        help="wanted on each port: some are always on their way back, having been shown out",
    )
    parser.add_argument("--sources", type=int, default=10, help="addresses they come from")
    parser.add_argument(
        "--arrivals", type=float, default=1700, help="new ones a second in all, at most"
    )
    parser.add_argument("--rate", type=float, default=50, help="good messages a second")
    parser.add_argument("--seconds", type=float, default=20, help="for each measurement")
    options = parser.parse_args()
    raise_descriptors()
    sys.stdout.write(json.dumps(run(options), indent=2) + "\n")


if __name__ == "__main__":
    main()
