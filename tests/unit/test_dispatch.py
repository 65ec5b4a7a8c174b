"""What the dispatch decides, with a clock of the tests' own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from sealrelay.dispatch import DeadlinePassed, DispatchError, Message, NoHealthyServer, QueueFull
from sealrelay.dispatch.decisions import Dispatch, Lane

PATIENCE = 1.0
_numbers = itertools.count()


def make_message(deadline: float = 10.0, size: int = 100) -> Message:
    return Message(next(_numbers).to_bytes(32, "big"), "client1", "t" * size, deadline)


def make_dispatch(
    *servers: str, max_batch: int = 3, max_waiting: int = 10, max_batch_bytes: int = 1000
) -> Dispatch:
    return Dispatch(
        servers or ("s1", "s2"),
        max_batch=max_batch,
        max_waiting=max_waiting,
        max_batch_bytes=max_batch_bytes,
        patience=PATIENCE,
    )


def add_lanes(dispatch: Dispatch, *servers: str) -> list[Lane]:
    lanes = [Lane(server) for server in servers]
    for lane in lanes:
        dispatch.lane_idle(lane)
    return lanes


def enqueue(dispatch: Dispatch, *messages: Message, now: float = 0.0) -> None:
    for message in messages:
        dispatch.enqueue(message, now)


def take(dispatch: Dispatch, now: float = 0.0) -> tuple[Lane, list[Message]] | None:
    assignment = dispatch.next_assignment(now)
    return None if assignment is None else (assignment.lane, assignment.batch)


def test_message_goes_to_an_idle_lane_and_the_lane_is_taken() -> None:
    dispatch = make_dispatch()
    (lane,) = add_lanes(dispatch, "s1")
    first, second = make_message(), make_message()
    enqueue(dispatch, first)
    assert take(dispatch) == (lane, [first])
    enqueue(dispatch, second)
    assert take(dispatch) is None
    dispatch.lane_idle(lane)
    assert take(dispatch) == (lane, [second])


def test_nothing_is_assigned_when_nothing_waits() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1")
    assert take(dispatch) is None


def test_idle_servers_take_turns() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2")
    served = []
    for _ in range(4):
        enqueue(dispatch, make_message())
        taken = take(dispatch)
        assert taken is not None
        served.append(taken[0].server)
        dispatch.lane_idle(taken[0])
    assert served == ["s1", "s2", "s1", "s2"]


def test_what_waits_goes_as_one_batch_in_its_order() -> None:
    dispatch = make_dispatch()
    messages = [make_message() for _ in range(5)]
    enqueue(dispatch, *messages)
    one, two = add_lanes(dispatch, "s1", "s2")
    assert take(dispatch) == (one, messages[:3])
    assert take(dispatch) == (two, messages[3:])
    assert take(dispatch) is None


def test_batch_is_capped_by_bytes_but_takes_at_least_one_message() -> None:
    dispatch = make_dispatch(max_batch=10)
    large, small, next_one = make_message(size=5000), make_message(size=600), make_message(size=500)
    enqueue(dispatch, large, small, next_one)
    add_lanes(dispatch, "s1", "s2", "s1")
    batches = [take(dispatch), take(dispatch), take(dispatch)]
    assert [taken and taken[1] for taken in batches] == [[large], [small], [next_one]]


def test_ejected_server_gets_nothing_until_it_is_readmitted() -> None:
    dispatch = make_dispatch()
    one, two = add_lanes(dispatch, "s1", "s2")
    assert dispatch.eject("s1", 0.0)
    assert not dispatch.eject("s1", 0.0)
    assert not dispatch.is_healthy("s1")
    messages = [make_message(), make_message()]
    enqueue(dispatch, messages[0])
    assert take(dispatch) == (two, [messages[0]])
    enqueue(dispatch, messages[1])
    assert take(dispatch) is None
    assert dispatch.readmit("s1")
    assert not dispatch.readmit("s1")
    assert take(dispatch) == (one, [messages[1]])


def test_failed_batch_goes_to_the_other_server_before_all_others_in_its_order() -> None:
    dispatch = make_dispatch()
    one, two = add_lanes(dispatch, "s1", "s2")
    failed = [make_message() for _ in range(3)]
    enqueue(dispatch, *failed)
    assert take(dispatch) == (one, failed)
    later = make_message()
    enqueue(dispatch, later)
    dispatch.eject("s1", 0.0)
    dispatch.put_back(failed)
    dispatch.lane_idle(one)
    assert take(dispatch) == (two, failed)
    dispatch.lane_idle(two)
    assert take(dispatch) == (two, [later])


def test_expired_message_is_never_assigned() -> None:
    dispatch = make_dispatch(max_batch=10)
    late, alive = [make_message(deadline=1.0) for _ in range(3)], make_message(deadline=2.0)
    enqueue(dispatch, late[0], alive, late[1], late[2])
    (lane,) = add_lanes(dispatch, "s1")
    assert take(dispatch, now=1.0) == (lane, [alive])
    dispatch.lane_idle(lane)
    assert take(dispatch, now=1.0) is None


def test_withdrawn_message_is_not_assigned() -> None:
    dispatch = make_dispatch()
    gone, stays = make_message(), make_message()
    enqueue(dispatch, gone, stays)
    dispatch.withdraw(gone)
    dispatch.withdraw(gone)
    (lane,) = add_lanes(dispatch, "s1")
    assert take(dispatch) == (lane, [stays])


def test_queue_takes_so_many_and_no_more() -> None:
    dispatch = make_dispatch(max_waiting=2)
    enqueue(dispatch, make_message(), make_message())
    with pytest.raises(QueueFull):
        dispatch.enqueue(make_message(), 0.0)
    add_lanes(dispatch, "s1")
    take(dispatch)
    enqueue(dispatch, make_message())


def test_put_back_is_never_refused() -> None:
    """What was taken in once is not dropped, however full the queue is by now."""
    dispatch = make_dispatch(max_waiting=2)
    add_lanes(dispatch, "s1", "s2")
    failed = [make_message(), make_message()]
    enqueue(dispatch, *failed)
    take(dispatch)
    enqueue(dispatch, make_message(), make_message())
    dispatch.put_back(failed)
    taken = take(dispatch)
    assert taken is not None
    assert taken[1][:2] == failed


def test_those_who_wait_are_told_only_after_patience_without_any_healthy_server() -> None:
    dispatch = make_dispatch()
    message = make_message()
    dispatch.eject("s1", 0.0)
    enqueue(dispatch, message, now=5.0)  # one server is left, so no clock runs
    assert dispatch.give_up(5.0) == []
    dispatch.eject("s2", 5.0)
    dispatch.eject("s1", 5.5)  # another failure does not start the clock anew
    assert dispatch.give_up(5.9) == []
    enqueue(dispatch, make_message(), now=5.9)
    assert len(dispatch.give_up(6.0)) == 2
    assert dispatch.give_up(6.0) == []
    with pytest.raises(NoHealthyServer):
        dispatch.enqueue(make_message(), 6.0)


def test_readmission_ends_the_wait() -> None:
    dispatch = make_dispatch()
    message = make_message()
    enqueue(dispatch, message)
    dispatch.eject("s1", 0.0)
    dispatch.eject("s2", 0.0)
    dispatch.readmit("s2")
    assert dispatch.give_up(9.0) == []
    (lane,) = add_lanes(dispatch, "s2")
    assert take(dispatch, now=9.0) == (lane, [message])


@pytest.mark.parametrize("error", [QueueFull, NoHealthyServer, DeadlinePassed])
def test_each_way_not_to_deliver_is_a_dispatch_error(error: type[Exception]) -> None:
    assert issubclass(error, DispatchError)


SERVERS = ("s1", "s2", "s3")
MAX_BATCH, MAX_BYTES, MAX_WAITING = 3, 250, 6


class DispatchMachine(RuleBasedStateMachine):
    """Any sequence of events, beside a model that says what may happen: one queue, in order."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.dispatch = make_dispatch(
            *SERVERS, max_batch=MAX_BATCH, max_waiting=MAX_WAITING, max_batch_bytes=MAX_BYTES
        )
        self.healthy = dict.fromkeys(SERVERS, True)
        self.dark_since: float | None = None
        self.waiting: list[Message] = []
        self.idle: list[Lane] = []
        self.away: list[Message] = []
        """In a batch that a lane carries."""

    @initialize(lanes=st.lists(st.sampled_from(SERVERS), min_size=1, max_size=6))
    def start(self, lanes: list[str]) -> None:
        self.idle = add_lanes(self.dispatch, *lanes)

    @property
    def given_up(self) -> bool:
        return self.dark_since is not None and self.now - self.dark_since >= PATIENCE

    @rule(ttl=st.sampled_from([0.5, 2.0, 100.0]), size=st.integers(60, 300))
    def enqueue(self, ttl: float, size: int) -> None:
        message = make_message(self.now + ttl, size)
        living = sum(other.deadline > self.now for other in self.waiting)
        try:
            self.dispatch.enqueue(message, self.now)
        except NoHealthyServer:
            assert self.given_up
        except QueueFull:
            assert not self.given_up
            assert len(self.waiting) >= MAX_WAITING
        else:
            assert not self.given_up
            assert living < MAX_WAITING
            self.waiting.append(message)

    @rule(target=sent)
    def assign(self) -> object:
        assignment = self.dispatch.next_assignment(self.now)
        lane = next((lane for lane in self.idle if self.healthy[lane.server]), None)
        living = [message for message in self.waiting if message.deadline > self.now]
        if assignment is None:
            assert lane is None or not living
            return multiple()
        assert assignment.lane is lane
        self.idle.remove(assignment.lane)
        batch = assignment.batch
        assert batch
        assert batch == living[: len(batch)]
        assert len(batch) <= MAX_BATCH
        size = sum(len(message.token) for message in batch)
        assert size <= MAX_BYTES or len(batch) == 1
        if len(batch) < min(MAX_BATCH, len(living)):  # no smaller than it has to be
            assert size + len(living[len(batch)].token) > MAX_BYTES
        self.waiting = living[len(batch) :]
        self.away += batch
        return lane, batch

    @rule(taken=consumes(sent))
    def answer(self, taken: tuple[Lane, list[Message]]) -> None:
        self._come_back(taken[0], taken[1], failed=[])

    @rule(taken=consumes(sent), data=st.data())
    def answer_503_for_some(self, taken: tuple[Lane, list[Message]], data: st.DataObject) -> None:
        kept = data.draw(st.integers(0, len(taken[1])))
        self._come_back(taken[0], taken[1], failed=taken[1][kept:])

    def _come_back(self, lane: Lane, batch: list[Message], failed: Sequence[Message]) -> None:
        self.away = [message for message in self.away if message not in batch]
        if failed:
            self.eject(lane.server)
            self.dispatch.put_back(failed)
            self.waiting = [*failed, *self.waiting]
        self.dispatch.lane_idle(lane)
        self.idle.append(lane)

    @rule(server=st.sampled_from(SERVERS))
    def eject(self, server: str) -> None:
        assert self.dispatch.eject(server, self.now) is self.healthy[server]
        self.healthy[server] = False
        if not any(self.healthy.values()) and self.dark_since is None:
            self.dark_since = self.now

    @rule(server=st.sampled_from(SERVERS))
    def readmit(self, server: str) -> None:
        assert self.dispatch.readmit(server) is not self.healthy[server]
        self.healthy[server] = True
        self.dark_since = None

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.waiting))
        self.dispatch.withdraw(message)
        self.waiting.remove(message)

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def withdraw_what_is_away(self, data: st.DataObject) -> None:
        self.dispatch.withdraw(data.draw(st.sampled_from(self.away)))

    @rule()
    def give_up(self) -> None:
        stranded = self.dispatch.give_up(self.now)
        if not self.given_up:
            assert stranded == []
            return
        living = [message for message in self.waiting if message.deadline > self.now]
        assert [message for message in stranded if message.deadline > self.now] == living
        self.waiting = []

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_in_two_places(self) -> None:
        ids = [message.message_id for message in (*self.waiting, *self.away)]
        assert len(set(ids)) == len(ids)

    @invariant()
    def health_is_what_was_said(self) -> None:
        for server in SERVERS:
            assert self.dispatch.is_healthy(server) is self.healthy[server]

    def teardown(self) -> None:
        """Whatever happened: all that still waits comes out, in order, once servers are well."""
        living = [message for message in self.waiting if message.deadline > self.now]
        for server in SERVERS:
            self.dispatch.readmit(server)
        add_lanes(self.dispatch, "s1")
        out = []
        while (assignment := self.dispatch.next_assignment(self.now)) is not None:
            out += assignment.batch
            self.dispatch.lane_idle(assignment.lane)
        assert out == living


TestDispatch = DispatchMachine.TestCase
TestDispatch.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
