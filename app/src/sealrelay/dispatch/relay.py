"""Runs the dispatch: a greenlet for each lane and each probe; ``decisions`` says what they do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import gevent
from gevent.event import AsyncResult
from gevent.queue import SimpleQueue

from sealrelay.dispatch.connection import BatchRefused, ServerConnection, ServerFailed
from sealrelay.dispatch.decisions import (
    DeadlinePassed,
    Dispatch,
    DispatchError,
    Lane,
    Message,
    NoHealthyServer,
)
from sealrelay.wire import Outcome

_log = logging.getLogger("sealrelay.coordinator")

_TICK = 0.1
"""Seconds between two looks for messages that no server is left for."""


@dataclass(frozen=True)
class Delivery:
    """What became of a message, and the name of the server that said so."""

    outcome: Outcome
    server: str


class Relay:
    """The dispatch of one worker process, running. Call ``start`` once in the worker."""

    def __init__(
        self,
        dispatch: Dispatch,
        urls: dict[str, str],
        connect: Callable[[str], ServerConnection],
        *,
        lanes: int,
        attempt_timeout: float,
        probe_interval: float,
    ) -> None:
        """``urls``: each server's name and URL; ``connect`` makes a connection to a server by name.

        ``lanes`` a server; times in seconds.
        """
        self._dispatch = dispatch
        self._urls = urls
        self._connect = connect
        self._lanes = lanes
        self._attempt_timeout = attempt_timeout
        self._probe_interval = probe_interval
        self._inboxes: dict[Lane, SimpleQueue[list[Message]]] = {}
        self._answers: dict[Message, AsyncResult[Delivery]] = {}

    def start(self) -> None:
        """Start the lanes, the probes and the look-out."""
        for _ in range(self._lanes):
            for server in self._urls:
                lane = Lane(server)
                self._inboxes[lane] = SimpleQueue()
                gevent.spawn(self._run_lane, lane)
                self._dispatch.lane_idle(lane)
        for server in self._urls:
            gevent.spawn(self._run_probe, server)
        gevent.spawn(self._look_out)

    def deliver(self, message: Message) -> Delivery:
        """Get a message stored; returns what a server said of it.

        Raises DispatchError: QueueFull, NoHealthyServer or DeadlinePassed.
        """
        self._dispatch.enqueue(message, time.monotonic())
        answer: AsyncResult[Delivery] = AsyncResult()
        self._answers[message] = answer
        try:
            self._pump()
            answer.wait(timeout=max(0.0, message.deadline - time.monotonic()))
            if not answer.ready():
                raise DeadlinePassed
            delivery = answer.get_nowait()
            assert delivery is not None
            return delivery
        finally:
            self._dispatch.withdraw(message)
            del self._answers[message]

    def _pump(self) -> None:
        while (next_one := self._dispatch.next_assignment(time.monotonic())) is not None:
            self._inboxes[next_one.lane].put(next_one.batch)

    def _run_lane(self, lane: Lane) -> None:
        connection = self._connect(lane.server)
        inbox = self._inboxes[lane]
        while True:
            self._carry(lane, connection, inbox.get())
            self._dispatch.lane_idle(lane)
            self._pump()

    def _carry(self, lane: Lane, connection: ServerConnection, batch: list[Message]) -> None:
        left = max(message.deadline for message in batch) - time.monotonic()
        try:
            outcomes = connection.send_batch(batch, max(0.001, min(self._attempt_timeout, left)))
        except ServerFailed as failure:
            self._fail(lane.server, failure, batch)
            return
        except BatchRefused as refused:
            if len(batch) > 1:  # one of them is to blame; the others must not pay for it
                for message in batch:
                    self._carry(lane, connection, [message])
                return
            message_id = batch[0].message_id.hex()
            _log.error("Message %s: %s %s", message_id, self._urls[lane.server], refused)
            detail = "The servers do not take what this coordinator takes."
            outcomes = [Outcome(refused.status, problem="refused-by-server", detail=detail)]
        except Exception:  # noqa: BLE001 - a bug must cost one attempt, not a lane
            _log.exception("Unexpected error in a lane to %s", self._urls[lane.server])
            connection.close()
            self._fail(lane.server, ServerFailed("unexpected error"), batch)
            return
        again = []
        for message, outcome in zip(batch, outcomes, strict=True):
            if outcome.status == 503:
                again.append(message)  # this server cannot just now, another one may
            elif (answer := self._answers.get(message)) is not None:
                answer.set(Delivery(outcome, lane.server))
        if again:
            self._fail(lane.server, ServerFailed("answered 503 for a message"), again)

    def _fail(self, server: str, failure: ServerFailed, batch: list[Message]) -> None:
        _log.warning("Server %s failed: %s", self._urls[server], failure)
        self._dispatch.eject(server, time.monotonic())
        self._dispatch.put_back([message for message in batch if message in self._answers])

    def _run_probe(self, server: str) -> None:
        connection = self._connect(server)
        while True:
            gevent.sleep(self._probe_interval)
            try:
                connection.probe(self._attempt_timeout)
            except ServerFailed as failure:
                if self._dispatch.eject(server, time.monotonic()):
                    _log.warning("Server %s failed: %s", self._urls[server], failure)
            except Exception:  # noqa: BLE001 - a bug must not end the probes
                _log.exception("Unexpected error in the probe of %s", self._urls[server])
                connection.close()
            else:
                if self._dispatch.readmit(server):
                    _log.info("Server %s is healthy again", self._urls[server])
                    self._pump()

    def _look_out(self) -> None:
        while True:
            gevent.sleep(_TICK)
            for message in self._dispatch.give_up(time.monotonic()):
                self._tell(message, NoHealthyServer())

    def _tell(self, message: Message, error: DispatchError) -> None:
        if (answer := self._answers.get(message)) is not None:
            answer.set_exception(error)
