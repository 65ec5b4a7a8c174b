"""What 10,000 kept-alive client connections cost one coordinator in memory.

Two servers and a coordinator on loopback. Processes open the connections one after the other and
send a message over each; when all are idle, memory is read, and then another message goes over
every one of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import ssl
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from http.client import HTTPException, HTTPSConnection
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.hostile import raise_descriptors
from benchmarks.processes import memory_mib
from sealrelay.seal import parse_keyring
from tests.support.deployment import Deployment
from tests.support.http import make_context

_CLIENTS = 8
"""Identities that share the connections, since one may not have them all."""
_STALE = 40.0
"""Seconds after which an idle connection is used again, before the coordinator closes it."""


class Holder:
    """Some of the connections, in a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self._context: ssl.SSLContext = make_context(folder)
        self._keyring = parse_keyring((folder / "payload.keys").read_text().splitlines())
        self._port = port
        self._held: deque[tuple[float, HTTPSConnection]] = deque()
        self.failed = 0

    def open(self, number: int) -> None:
        """Open so many connections and send a message over each."""
        for _ in range(number):
            connection = HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=60)
            connection.connect()
            connection.auto_open = 0  # one that was closed must not be opened again unseen
            self._use(connection)
            while time.monotonic() - self._held[0][0] > _STALE:
                self._use(self._held.popleft()[1])

    def use_all(self) -> int:
        """Send a message over every connection. Returns how many were stored."""
        return sum(self._use(self._held.popleft()[1]) for _ in range(len(self._held)))

    def _use(self, connection: HTTPSConnection) -> bool:
        body = json.dumps({"data": self._keyring.seal(b"a message").text})
        stored = False
        try:
            connection.request("POST", "/api/data", body, {"Content-Type": "application/json"})
            stored = connection.getresponse().read() == b'{"result":"ok"}'
        except (OSError, HTTPException):
            connection.close()
        self.failed += not stored
        self._held.append((time.monotonic(), connection))
        return stored


def hold(folder: Path, port: int, number: int, pipe: Connection) -> None:
    """A holder's process: opens, says so, waits, uses all, tells, waits again."""
    raise_descriptors()
    holder = Holder(folder, port)
    holder.open(number)
    pipe.send(holder.failed)
    pipe.recv()
    pipe.send(holder.use_all())
    pipe.recv()


def run(number: int) -> dict[str, object]:
    """The whole measurement; see the module."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        deployment = Deployment(Path(folder) / "deployment")
        stack.callback(deployment.stop)
        names = [f"client{index + 1}" for index in range(_CLIENTS)]
        for name in names[2:]:
            deployment.add_client(name)
        deployment.start()
        with deployment.client() as client:
            for index in range(200):
                client.send(f"warm up {index}")
        before = memory_mib(deployment.coordinator.processes)
        pipes, processes = [], []
        for name in names:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=hold,
                args=(
                    deployment.folder / f"client-{name}",
                    deployment.coordinator.port,
                    number // _CLIENTS,
                    theirs,
                ),
                daemon=True,
            )
            process.start()
            theirs.close()  # so that the end of a process is seen
            pipes.append(ours)
            processes.append(process)
        began = time.monotonic()
        failed = sum(pipe.recv() for pipe in pipes)
        opening = time.monotonic() - began
        (worker,) = deployment.coordinator.workers
        descriptors = sum(1 for _ in Path(f"/proc/{worker}/fd").iterdir())
        after = memory_mib(deployment.coordinator.processes)
        for pipe in pipes:
            pipe.send("use them all")
        stored = sum(pipe.recv() for pipe in pipes)
        used = memory_mib(deployment.coordinator.processes)
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send("end")
            process.join(60)
    return {
        "connections": number,
        "open_descriptors": descriptors,
        "opening_seconds": round(opening, 1),
        "failed_at_opening": failed,
        "before_mib": before,
        "after_mib": after,
        "kib_per_connection": round((after - before) * 1024 / number, 1),
        "stored_over_every_connection": stored,
        "after_use_mib": used,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    raise_descriptors()
    sys.stdout.write(json.dumps(run(options.connections), indent=2) + "\n")


if __name__ == "__main__":
    main()
