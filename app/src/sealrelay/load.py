"""Sends messages at a fixed or rising rate, and writes down what became of each.

The load is open: when a message is due is settled beforehand, whatever became of those before. One
that is sent late, because all connections wait for an answer, counts from when it was due, so a
stall costs every message that was due during it (G. Tene, "How NOT to Measure Latency": the
opposite is coordinated omission).
"""

from __future__ import annotations

import math
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealrelay.client import Client
from sealrelay.errors import (
    CertificateRefused,
    MessageRefused,
    SealrelayError,
    TokenRefused,
)
from sealrelay.history import Answered, Fate, HistoryWriter, Run, Sent, write_text

_REFUSALS = (CertificateRefused, MessageRefused, TokenRefused)
"""Errors that say for certain that the message is not stored."""


@dataclass(frozen=True)
class Plan:
    """What to send. ``rate`` rises evenly to ``to_rate``, both in messages a second."""

    rate: float
    to_rate: float
    seconds: float
    sizes: tuple[int, int]
    """The smallest and the largest plaintext, in bytes."""
    connections: int

    @property
    def messages(self) -> int:
        """How many are due in all."""
        return int((self.rate + self.to_rate) / 2 * self.seconds)

    def due(self, number: int) -> float:
        """When a message is due, the first being number 1: seconds from the beginning."""
        wanted = number - 1
        if self.rate == self.to_rate:
            return wanted / self.rate
        growth = (self.to_rate - self.rate) / self.seconds
        # by then so many were due: rate * t + growth / 2 * t**2
        root = math.sqrt(self.rate * self.rate + 2 * growth * wanted)
        return 2 * wanted / (self.rate + root)


@dataclass
class Tally:
    """How a load goes, so far."""

    due: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    again: int = 0
    """Tries beyond each message's first."""
    worst: float = 0.0
    """The longest time from when a message was due to its acknowledgement, in seconds."""
    worst_lately: float = 0.0
    """The same, since ``tell`` was last called."""
    last_detail: str = ""
    """Of the last message that was not acknowledged."""

    @property
    def under_way(self) -> int:
        """Messages that were due and whose fate is not known yet."""
        return self.due - self.acknowledged - self.refused - self.unknown


class Load:
    """One run. ``run`` may be called once; ``stop`` may be called meanwhile."""

    def __init__(self, plan: Plan, clients: Sequence[Path], history: Path) -> None:
        """``clients``: settings files, whose clients take turns. Raises ConfigError."""
        self._plan = plan
        self._history = history
        first = [Client.from_file(path) for path in clients]
        # One for each thread: a client is not to be shared.
        more = range(len(first), plan.connections)
        self._clients = first + [first[number % len(first)].another() for number in more]
        self._run = secrets.token_hex(8)
        self._queues: dict[str, queue.SimpleQueue[tuple[int, float] | None]] = {}
        for client in self._clients:
            self._queues.setdefault(client.name, queue.SimpleQueue())
        self._tally = Tally()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._unexpected: Exception | None = None

    def stop(self) -> None:
        """Send nothing that is not due yet; what is under way is waited for."""
        self._stopped.set()

    def run(self, tell: Callable[[float, Tally], None]) -> Tally:
        """Send everything, and wait for what is under way. Raises OSError for the history.

        ``tell`` hears once a second how many seconds have passed, and how it goes.
        """
        began = time.time()
        with HistoryWriter(self._history, Run(self._run, began)) as history:
            start = time.monotonic()
            threads = [
                threading.Thread(target=self._serve, args=(client, history, start), daemon=True)
                for client in self._clients
            ]
            for thread in threads:
                thread.start()
            try:
                self._schedule(start, tell)
            finally:
                for client in self._clients:
                    self._queues[client.name].put(None)
                while any(thread.is_alive() for thread in threads):
                    self._wait_for(threads, start, tell)
        if self._unexpected is not None:
            raise self._unexpected
        return self._tally

    def _schedule(self, start: float, tell: Callable[[float, Tally], None]) -> None:
        queues = list(self._queues.values())
        told = 0.0
        for number in range(1, self._plan.messages + 1):
            due = self._plan.due(number)
            while (left := start + due - time.monotonic()) > 0:
                if self._stopped.wait(min(left, 0.2)):
                    return
                told = self._tell(start, told, tell)
            if self._stopped.is_set():
                return
            with self._lock:
                self._tally.due += 1
            queues[number % len(queues)].put((number, due))
            told = self._tell(start, told, tell)

    def _wait_for(
        self,
        threads: Sequence[threading.Thread],
        start: float,
        tell: Callable[[float, Tally], None],
    ) -> None:
        until = time.monotonic() + 1.0
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            self._tell(start, -math.inf, tell)

    def _tell(self, start: float, told: float, tell: Callable[[float, Tally], None]) -> float:
        seconds = time.monotonic() - start
        if seconds - told < 1.0:
            return told
        with self._lock:
            tell(seconds, self._tally)
            self._tally.worst_lately = 0.0
        return seconds

    def _serve(self, client: Client, history: HistoryWriter, start: float) -> None:
        waiting = self._queues[client.name]
        with client:
            while (item := waiting.get()) is not None:
                try:
                    self._send(client, history, start, *item)
                except Exception as error:  # noqa: BLE001 - raised again by ``run``
                    self._unexpected = error
                    self.stop()
                    return

    def _send(
        self, client: Client, history: HistoryWriter, start: float, number: int, due: float
    ) -> None:
        size = random.randint(*self._plan.sizes)  # noqa: S311 - not a secret
        token = client.seal(write_text(self._run, number, size))
        sent = time.monotonic() - start
        history.write(
            Sent(
                number,
                client.name,
                token.message_id.hex(),
                token.sealed_at,
                round(due, 6),
                round(sent, 6),
            )
        )
        fate, server, tries, detail = Fate.UNKNOWN, "", 0, ""
        try:
            receipt = client.send_token(token)
            fate, server, tries = Fate.ACKNOWLEDGED, receipt.served_by, receipt.tries
        except _REFUSALS as error:
            fate, detail = Fate.REFUSED, str(error)
        except SealrelayError as error:
            detail = str(error)
        answered = time.monotonic() - start
        history.write(Answered(number, round(answered, 6), fate, server, tries, detail))
        with self._lock:
            self._count(fate, tries, answered - due, detail)

    def _count(self, fate: Fate, tries: int, seconds: float, detail: str) -> None:
        tally = self._tally
        if fate is Fate.ACKNOWLEDGED:
            tally.acknowledged += 1
            tally.again += tries - 1
            tally.worst = max(tally.worst, seconds)
            tally.worst_lately = max(tally.worst_lately, seconds)
            return
        tally.refused += fate is Fate.REFUSED
        tally.unknown += fate is Fate.UNKNOWN
        tally.last_detail = detail
