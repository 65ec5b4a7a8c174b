"""Runs the dispatch: a greenlet for each lane and each probe; ``decisions`` says what they do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
from gevent import get_hub
from gevent.hub import Waiter
from gevent.queue import SimpleQueue

from sealrelay.dispatch.connection import BatchRefused, ServerConnection, ServerFailed
from sealrelay.dispatch.decisions import (
    Attempt,
    DeadlinePassed,
    Dispatch,
    DispatchError,
    Lane,
    Message,
    NoHealthyServer,
)
from sealrelay.dispatch.observer import Observer
from sealrelay.wire import Outcome

_log = logging.getLogger("sealrelay.coordinator")

_LONGEST_LOOK = 0.1
"""Seconds between two looks at what is late, at most: by so much a deadline may be missed."""


class Relay:
    """The dispatch of one worker process, running. Call ``start`` once in the worker."""

    def __init__(
        self,
        dispatch: Dispatch,
        urls: dict[str, str],
        connect: Callable[[str], ServerConnection],
        observer: Observer,
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
        self._observer = observer
        self._lanes = lanes
        self._attempt_timeout = attempt_timeout
        self._probe_interval = probe_interval
        self._inboxes: dict[Lane, SimpleQueue[Attempt]] = {}
        self._connections: list[ServerConnection] = []
        self._senders: dict[Message, Waiter[Outcome]] = {}
        self._will_pump = False

    def start(self) -> None:
        """Start the lanes, the probes and the look-out."""
        self._observer.start()
        for _ in range(self._lanes):
            for server in self._urls:
                lane = Lane(server)
                self._inboxes[lane] = SimpleQueue()
                gevent.spawn(self._run_lane, lane)
                self._dispatch.lane_idle(lane)
        for server in self._urls:
            gevent.spawn(self._run_probe, server)
        gevent.spawn(self._look_out)

    def renew_connections(self) -> None:
        """What is shown to servers, or believed of them, has changed: connect to them anew."""
        for connection in self._connections:
            connection.renew()

    def close(self) -> None:
        """Close the connections to servers, at the end of the process."""
        for connection in self._connections:
            connection.close()

    def deliver(self, message: Message) -> Outcome:
        """Get a message stored; returns what a server said of it.

        Messages come in the order of their deadlines. Raises DispatchError: QueueFull,
        NoHealthyServer or DeadlinePassed.
        """
        self._dispatch.enqueue(message, time.monotonic())
        sender: Waiter[Outcome] = Waiter()
        self._senders[message] = sender
        try:
            self._pump_soon()
            return sender.get()
        finally:
            self._dispatch.finish(message)
            del self._senders[message]

    def _tell(self, message: Message, outcome: Outcome | DispatchError) -> None:
        """Let the sender go on with what became of its message; what it is told first counts."""
        sender = self._senders[message]
        if isinstance(outcome, DispatchError):
            get_hub().loop.run_callback(sender.throw, outcome)
        else:
            get_hub().loop.run_callback(sender.switch, outcome)

    def _pump_soon(self) -> None:
        """Hand out messages once all that came in this turn of the event loop is there."""
        if not self._will_pump:
            self._will_pump = True
            get_hub().loop.run_callback(self._pump)

    def _pump(self) -> None:
        self._will_pump = False
        try:
            while (attempt := self._dispatch.next_attempt(time.monotonic())) is not None:
                self._observer.sent(attempt)
                self._inboxes[attempt.lane].put(attempt)
        except Exception:  # noqa: BLE001 - a bug must cost no message, lane or probe: see _look_out
            _log.exception("Unexpected error while handing out messages")

    def _open(self, server: str) -> ServerConnection:
        connection = self._connect(server)
        self._connections.append(connection)
        return connection

    def _run_lane(self, lane: Lane) -> None:
        connection = self._open(lane.server)
        inbox = self._inboxes[lane]
        while True:
            attempt = inbox.get()
            answered: list[tuple[Message, Outcome]] = []
            try:
                until = time.monotonic() + self._attempt_timeout
                answered = self._note_answer(attempt, self._send(connection, attempt.batch, until))
            except ServerFailed as failure:
                self._note_failure(attempt, failure)
            except Exception:  # noqa: BLE001 - a bug must cost one attempt, not a lane
                _log.exception("Unexpected error in a lane to %s", self._urls[lane.server])
                connection.close()
                if self._dispatch.is_open(attempt):
                    self._note_failure(attempt, ServerFailed("unexpected error"))
            self._dispatch.lane_idle(lane)
            # Servers first: one that has the next batch works while clients get their answers.
            self._pump()
            for message, outcome in answered:
                self._tell(message, outcome)

    def _send(
        self, connection: ServerConnection, batch: list[Message], until: float
    ) -> list[Outcome]:
        """Have a batch stored until a time; an outcome for each message. Raises ServerFailed.

        The messages' own deadlines play no part: a server is not to blame for one that is near.
        """
        try:
            return connection.send_batch(batch, max(0.001, until - time.monotonic()))
        except BatchRefused as refused:
            if len(batch) > 1:  # one of them is to blame; the others must not pay for it
                return [
                    outcome
                    for message in batch
                    for outcome in self._send(connection, [message], until)
                ]
            _log.error("Message %s: a server %s", batch[0].message_id.hex(), refused)
            detail = "The servers do not take what this coordinator takes."
            return [Outcome(refused.status, problem="refused-by-server", detail=detail)]

    def _note_answer(
        self, attempt: Attempt, outcomes: list[Outcome]
    ) -> list[tuple[Message, Outcome]]:
        """What is to be answered now: messages whose first outcome this is."""
        answered = [
            (message, outcome)
            for message, outcome in zip(attempt.batch, outcomes, strict=True)
            # 503: this server cannot just now, another one may
            if outcome.status != 503 and self._dispatch.finish(message)
        ]
        if any(outcome.status == 503 for outcome in outcomes):
            self._note_failure(attempt, ServerFailed("answered 503 for a message"))
            return answered
        self._observer.answered(attempt)
        finished = [message for message, _ in answered]
        for server in self._dispatch.succeed(attempt, finished, time.monotonic()):
            self._observer.overtaken(server, attempt.lane.server)
            _log.warning("Server %s is slow: another one overtook it", self._urls[server])
        return answered

    def _note_failure(self, attempt: Attempt, failure: ServerFailed) -> None:
        server = attempt.lane.server
        _log.warning("Server %s failed: %s", self._urls[server], failure)
        self._dispatch.fail(attempt, time.monotonic(), timed_out=failure.timed_out)
        self._observer.failed(attempt, str(failure), timed_out=failure.timed_out)

    def _run_probe(self, server: str) -> None:
        connection = self._open(server)
        while True:
            gevent.sleep(self._probe_interval)
            try:
                self._probe(server, connection)
            except Exception:  # noqa: BLE001 - a bug must not end the probes
                _log.exception("Unexpected error in the probe of %s", self._urls[server])
                connection.close()

    def _probe(self, server: str, connection: ServerConnection) -> None:
        began = time.monotonic()
        try:
            health = connection.probe(self._attempt_timeout)
        except ServerFailed as failure:
            news = self._dispatch.eject(server, time.monotonic())
            self._observer.probe_failed(server, str(failure))
            if news:
                _log.warning("Server %s failed: %s", self._urls[server], failure)
                self._pump()  # what waited for it is another one's now
            return
        self._observer.told(server, health)
        quick = time.monotonic() - began <= self._dispatch.hedge_delay.seconds
        if self._dispatch.readmit(server, time.monotonic(), quick=quick):
            self._observer.readmitted(server)
            how = "healthy again" if quick else "back, but slow"
            _log.info("Server %s is %s", self._urls[server], how)
            self._pump()

    def _look_out(self) -> None:
        pause = 0.0
        while True:
            gevent.sleep(pause)
            pause = _LONGEST_LOOK
            try:
                pause = min(pause, self._look(time.monotonic()))
            except Exception:  # noqa: BLE001 - a bug must not end the look-out
                _log.exception("Unexpected error while looking for what is late")

    def _look(self, now: float) -> float:
        """See to what is late; returns when to look again, in seconds."""
        # A timer for each message would cost as much as all else that is decided of it.
        for message in self._senders:
            if message.deadline > now:
                break
            self._tell(message, DeadlinePassed())
        self._dispatch.hedge(now)
        self._pump()
        for message in self._dispatch.give_up(now):
            self._tell(message, NoHealthyServer())
        return self._dispatch.next_look(now)
