"""The dispatch as it runs: in what order things are done, with servers that are a queue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import gevent
from gevent.queue import Queue

from sealrelay.dispatch.connection import ServerConnection
from sealrelay.dispatch.decisions import (
    Attempt,
    DeadlinePassed,
    Dispatch,
    Health,
    Limits,
    Message,
)
from sealrelay.dispatch.observer import Observer
from sealrelay.dispatch.relay import Relay
from sealrelay.wire import HealthAnswer, Outcome

_LONG = 60.0
"""Seconds: nothing is late here."""


class _Server:
    """Answers a batch when it is told to, and every probe at once."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.probes = 0
        self.may_answer: Queue[None] = Queue()

    def send_batch(self, batch: Sequence[Message], _timeout: float) -> list[Outcome]:
        self.events.append(f"batch of {len(batch)} sent")
        self.may_answer.get()
        return [Outcome(200, server="s1") for _ in batch]

    def probe(self, _timeout: float) -> HealthAnswer:
        self.probes += 1
        return HealthAnswer()

    def close(self) -> None:
        self.events.append("closed")


class _Flawed(Dispatch):
    """Can't decide anything for a while."""

    is_flawed = False

    def next_attempt(self, now: float) -> Attempt | None:
        self._fail()
        return super().next_attempt(now)

    def readmit(self, server: str, now: float, *, quick: bool) -> bool:
        self._fail()
        return super().readmit(server, now, quick=quick)

    def _fail(self) -> None:
        if self.is_flawed:
            raise ZeroDivisionError


def _start(server: _Server, *, probe_interval: float = _LONG) -> tuple[Relay, _Flawed]:
    limits = Limits(
        max_batch=10,
        max_batch_bytes=10_000,
        max_waiting=10,
        max_waiting_bytes=10_000,
        patience=_LONG,
        hedge_floor=_LONG,
        hedge_ceiling=_LONG,
        retry_share=0.1,
    )
    dispatch = _Flawed(["s1"], limits)
    urls = {"s1": "https://127.0.0.1:1"}
    relay = Relay(
        dispatch,
        urls,
        lambda _name: cast(ServerConnection, server),
        Observer("relay", urls, dispatch, limits.max_waiting, time.time(), 2),
        lanes=2,
        attempt_timeout=_LONG,
        probe_interval=probe_interval,
    )
    relay.start()
    return relay, dispatch


def _message(number: int, seconds: float = _LONG) -> Message:
    """Its deadline comes after that time."""
    token = f"token{number}"
    return Message(bytes([number]) * 32, "client1", token, time.monotonic() + seconds)


def test_what_comes_in_one_turn_of_the_event_loop_goes_together() -> None:
    events: list[str] = []
    server = _Server(events)
    relay, _ = _start(server)
    senders = [gevent.spawn(relay.deliver, _message(number)) for number in range(3)]
    server.may_answer.put(None)
    assert len(gevent.joinall(senders, timeout=_LONG)) == len(senders)
    assert events == ["batch of 3 sent"]


def test_a_message_whose_deadline_passes_is_told_so_and_no_other() -> None:
    server = _Server([])
    relay, _ = _start(server)
    late = gevent.spawn(relay.deliver, _message(1, seconds=0.05))
    patient = gevent.spawn(relay.deliver, _message(2))
    late.join(timeout=_LONG)
    assert isinstance(late.exception, DeadlinePassed)
    assert not patient.dead
    server.may_answer.put(None)
    assert patient.get(timeout=_LONG) == Outcome(200, server="s1")


def test_a_message_that_no_server_may_take_has_a_deadline_too() -> None:
    relay, dispatch = _start(_Server([]))
    dispatch.eject("s1", time.monotonic())
    late = gevent.spawn(relay.deliver, _message(1, seconds=0.05))
    late.join(timeout=_LONG)
    assert isinstance(late.exception, DeadlinePassed)
    assert dispatch.waiting == 0


def test_a_server_gets_its_next_batch_before_the_last_one_s_senders_get_their_answers() -> None:
    events: list[str] = []
    server = _Server(events)
    relay, _ = _start(server)

    def send(number: int) -> None:
        relay.deliver(_message(number))
        events.append(f"message {number} answered")

    senders = [gevent.spawn(send, 1)]
    gevent.sleep(0.01)
    senders += [gevent.spawn(send, 2), gevent.spawn(send, 3)]
    gevent.sleep(0.01)
    server.may_answer.put(None)
    server.may_answer.put(None)
    assert len(gevent.joinall(senders, timeout=_LONG)) == len(senders)
    assert events == [
        "batch of 1 sent",
        "batch of 2 sent",
        "message 1 answered",
        "message 2 answered",
        "message 3 answered",
    ]


def test_a_decision_that_fails_costs_no_message_and_no_probe() -> None:
    server = _Server([])
    server.may_answer.put(None)
    relay, dispatch = _start(server, probe_interval=0.01)
    dispatch.eject("s1", time.monotonic())
    dispatch.is_flawed = True
    sender = gevent.spawn(relay.deliver, _message(1))
    with gevent.Timeout(_LONG):
        while server.probes < 3:
            gevent.sleep(0.01)
    dispatch.is_flawed = False
    assert sender.get(timeout=_LONG) == Outcome(200, server="s1")
    assert dispatch.health("s1") is Health.HEALTHY
