"""What the dispatch decides, with a clock of the tests' own."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sealrelay.dispatch import DeadlinePassed, DispatchError, Message, NoHealthyServer, QueueFull
from sealrelay.dispatch.decisions import (
    _WORTH_SHARING,
    Attempt,
    Budget,
    Dispatch,
    Health,
    HedgeDelay,
    Lane,
    Limits,
)

PATIENCE = 1.0
HEDGE = 0.1
_numbers = itertools.count()


def make_message(deadline: float = 10.0, size: int = 100) -> Message:
    return Message(next(_numbers).to_bytes(32, "big"), "client1", "t" * size, deadline)


def make_dispatch(
    *servers: str,
    max_batch: int = 3,
    max_waiting: int = 10,
    max_batch_bytes: int = 1000,
    max_waiting_bytes: int = 100_000,
    retry_share: float = 0.2,
) -> Dispatch:
    limits = Limits(
        max_batch=max_batch,
        max_batch_bytes=max_batch_bytes,
        max_waiting=max_waiting,
        max_waiting_bytes=max_waiting_bytes,
        patience=PATIENCE,
        hedge_floor=HEDGE,
        hedge_ceiling=HEDGE,
        retry_share=retry_share,
    )
    return Dispatch(servers or ("s1", "s2"), limits)


def add_lanes(dispatch: Dispatch, *servers: str) -> list[Lane]:
    lanes = [Lane(server) for server in servers]
    for lane in lanes:
        dispatch.lane_idle(lane)
    return lanes


def enqueue(dispatch: Dispatch, *messages: Message, now: float = 0.0) -> None:
    for message in messages:
        dispatch.enqueue(message, now)


def take(dispatch: Dispatch, now: float = 0.0) -> Attempt:
    attempt = dispatch.next_attempt(now)
    assert attempt is not None
    return attempt


def answer(dispatch: Dispatch, attempt: Attempt, now: float = 0.0) -> list[str]:
    """The server answers for all of a batch; returns the servers that it overtook."""
    finished = [message for message in attempt.batch if dispatch.finish(message)]
    slow = dispatch.succeed(attempt, finished, now)
    dispatch.lane_idle(attempt.lane)
    return slow


# Who gets what


def test_message_goes_to_an_idle_lane_and_the_lane_is_taken() -> None:
    dispatch = make_dispatch()
    (lane,) = add_lanes(dispatch, "s1")
    first, second = make_message(), make_message()
    enqueue(dispatch, first)
    attempt = take(dispatch)
    assert (attempt.lane, attempt.batch) == (lane, [first])
    enqueue(dispatch, second)
    assert dispatch.next_attempt(0.0) is None
    answer(dispatch, attempt)
    assert take(dispatch).batch == [second]


def test_nothing_is_sent_when_nothing_waits() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1")
    assert dispatch.next_attempt(0.0) is None


def test_idle_servers_take_turns() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2")
    served = []
    for _ in range(4):
        enqueue(dispatch, make_message())
        attempt = take(dispatch)
        served.append(attempt.lane.server)
        answer(dispatch, attempt)
    assert served == ["s1", "s2", "s1", "s2"]


def test_server_gets_another_batch_only_when_its_last_is_held_up() -> None:
    dispatch = make_dispatch("s1")
    add_lanes(dispatch, "s1", "s1", "s1")
    first, second, third = make_message(), make_message(), make_message()
    enqueue(dispatch, first)
    attempt = take(dispatch, 0.0)
    enqueue(dispatch, second, third)
    assert dispatch.next_attempt(HEDGE / 4) is None
    assert dispatch.next_look(HEDGE / 4) <= HEDGE / 4, "it is seen to in time"
    assert take(dispatch, HEDGE / 2).batch == [second, third]
    answer(dispatch, attempt, HEDGE / 2)
    enqueue(dispatch, make_message())
    assert dispatch.next_attempt(HEDGE / 2) is None, "the newest counts"
    assert take(dispatch, HEDGE).lane.server == "s1"


def test_looks_are_as_far_apart_as_nothing_can_be_late() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2")
    assert dispatch.next_look(0.0) == pytest.approx(HEDGE)
    enqueue(dispatch, make_message())
    attempt = take(dispatch, 0.0)
    assert dispatch.next_look(HEDGE / 4) == pytest.approx(HEDGE * 3 / 4)
    assert 0 < dispatch.next_look(5.0) < HEDGE / 4, "late, and not hedged yet"
    assert dispatch.hedge(5.0) == 1
    answer(dispatch, attempt, 5.0)
    assert dispatch.next_attempt(5.0) is None, "the repeat is not needed any more"
    assert dispatch.next_look(5.0) == pytest.approx(HEDGE)


def test_servers_take_turns_again_after_one_was_down() -> None:
    """All of its lanes are idle then, and still it gets every other message, not all."""
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s1", "s1", "s2", "s2", "s2")
    dispatch.eject("s1", 0.0)
    for _ in range(3):
        enqueue(dispatch, make_message())
        answer(dispatch, take(dispatch))
    dispatch.readmit("s1", 0.0, quick=True)
    served = []
    for _ in range(4):
        enqueue(dispatch, make_message())
        attempt = take(dispatch)
        served.append(attempt.lane.server)
        answer(dispatch, attempt)
    assert served == ["s1", "s2", "s1", "s2"]


def test_what_waits_goes_as_one_batch_in_its_order() -> None:
    dispatch = make_dispatch()
    messages = [make_message() for _ in range(5)]
    enqueue(dispatch, *messages)
    add_lanes(dispatch, "s1", "s2")
    assert take(dispatch).batch == messages[:3]
    assert take(dispatch).batch == messages[3:]
    assert dispatch.next_attempt(0.0) is None


def test_many_are_shared_among_the_servers_that_will_soon_ask_for_some() -> None:
    dispatch = make_dispatch(max_batch=100, max_batch_bytes=10**6, max_waiting=200)
    enqueue(dispatch, *(make_message() for _ in range(40)))
    add_lanes(dispatch, "s1", "s2")
    assert len(take(dispatch, 0.0).batch) == 20
    enqueue(dispatch, *(make_message() for _ in range(20)))
    assert len(take(dispatch, HEDGE).batch) == 40, "the other one is held up"


def test_few_are_not_shared() -> None:
    dispatch = make_dispatch(max_batch=100, max_batch_bytes=10**6, max_waiting=200)
    enqueue(dispatch, *(make_message() for _ in range(16)))
    add_lanes(dispatch, "s1", "s2")
    assert len(take(dispatch).batch) == 16


def test_batches_become_equal_where_those_who_are_answered_send_again() -> None:
    """Two batches that take turns, of 16 messages: one of them large, the other one small."""
    dispatch = make_dispatch(max_batch=100, max_batch_bytes=10**6, max_waiting=200)
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, *(make_message() for _ in range(11)))
    attempt = take(dispatch)
    enqueue(dispatch, *(make_message() for _ in range(5)))
    sizes = []
    for _ in range(4):
        answer(dispatch, attempt)
        again = len(attempt.batch)
        attempt = take(dispatch)
        sizes.append(len(attempt.batch))
        enqueue(dispatch, *(make_message() for _ in range(again)))
    assert sizes == [5, 8, 8, 8]


def test_a_few_that_come_out_of_the_blue_go_together() -> None:
    dispatch = make_dispatch(max_batch=100, max_batch_bytes=10**6, max_waiting=200)
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, *(make_message() for _ in range(5)))
    answer(dispatch, take(dispatch))
    enqueue(dispatch, *(make_message() for _ in range(12)), now=HEDGE)
    assert len(take(dispatch, HEDGE).batch) == 12


def test_what_comes_while_a_server_has_a_batch_gathers_for_the_next_one() -> None:
    dispatch = make_dispatch(max_batch=100, max_batch_bytes=10**6, max_waiting=200)
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, *(make_message() for _ in range(5)))
    first = take(dispatch, 0.0)
    enqueue(dispatch, *(make_message() for _ in range(3)))
    assert dispatch.next_attempt(0.0) is None
    answer(dispatch, first, HEDGE / 4)
    second = take(dispatch, HEDGE / 4)
    assert (second.lane.server, len(second.batch)) == ("s2", 3), "they take turns all the same"
    enqueue(dispatch, make_message())
    assert take(dispatch, HEDGE / 4).lane.server == "s1", "beside a small one"


def test_nothing_waits_for_a_batch_that_is_held_up_or_of_a_server_that_is_not_healthy() -> None:
    dispatch = make_dispatch(max_batch=100, max_batch_bytes=10**6, max_waiting=200)
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, *(make_message() for _ in range(5)))
    first = take(dispatch, 0.0)
    enqueue(dispatch, make_message())
    assert dispatch.next_attempt(HEDGE / 4) is None
    second = take(dispatch, HEDGE / 2)
    answer(dispatch, second, HEDGE / 2)
    answer(dispatch, first, HEDGE / 2)
    enqueue(dispatch, *(make_message() for _ in range(5)))
    third = take(dispatch, HEDGE)
    enqueue(dispatch, make_message())
    assert dispatch.next_attempt(HEDGE) is None
    dispatch.eject(third.lane.server, HEDGE)
    assert take(dispatch, HEDGE).lane.server != third.lane.server


def test_batch_that_failed_waits_for_no_other() -> None:
    dispatch = make_dispatch("s1", "s2", "s3", max_batch=100, max_batch_bytes=10**6)
    add_lanes(dispatch, "s1", "s2", "s3")
    enqueue(dispatch, make_message())
    failed = take(dispatch, 0.0)
    enqueue(dispatch, *(make_message() for _ in range(5)))
    take(dispatch, 0.0)
    dispatch.fail(failed, 0.0, timed_out=False)
    assert take(dispatch, 0.0).batch == failed.batch


def test_batch_is_capped_by_bytes_but_takes_at_least_one_message() -> None:
    dispatch = make_dispatch("s1", "s2", "s3", max_batch=10)
    large, small, next_one = make_message(size=5000), make_message(size=600), make_message(size=500)
    enqueue(dispatch, large, small, next_one)
    add_lanes(dispatch, "s1", "s2", "s3")
    assert [take(dispatch).batch for _ in range(3)] == [[large], [small], [next_one]]


def test_expired_message_is_never_sent() -> None:
    dispatch = make_dispatch(max_batch=10)
    late, alive = [make_message(deadline=1.0) for _ in range(3)], make_message(deadline=2.0)
    enqueue(dispatch, late[0], alive, late[1], late[2])
    add_lanes(dispatch, "s1")
    assert take(dispatch, now=1.0).batch == [alive]


def test_message_that_nobody_waits_for_is_not_sent() -> None:
    dispatch = make_dispatch()
    gone, stays = make_message(), make_message()
    enqueue(dispatch, gone, stays)
    assert dispatch.finish(gone)
    assert not dispatch.finish(gone)
    add_lanes(dispatch, "s1")
    assert take(dispatch).batch == [stays]


# How much waits


def test_queue_takes_so_many_and_no_more() -> None:
    dispatch = make_dispatch(max_waiting=2)
    gone = make_message()
    enqueue(dispatch, gone, make_message())
    with pytest.raises(QueueFull):
        dispatch.enqueue(make_message(), 0.0)
    dispatch.finish(gone)
    enqueue(dispatch, make_message())
    add_lanes(dispatch, "s1")
    take(dispatch)
    enqueue(dispatch, make_message(), make_message())


def test_queue_takes_so_many_bytes_but_at_least_one_message() -> None:
    dispatch = make_dispatch(max_waiting_bytes=1000)
    enqueue(dispatch, make_message(size=5000))
    with pytest.raises(QueueFull):
        dispatch.enqueue(make_message(size=1), 0.0)


def test_repeat_is_never_refused() -> None:
    """What was taken in once is not dropped, however full the queue is by now."""
    dispatch = make_dispatch(max_waiting=2)
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, make_message(), make_message())
    failed = take(dispatch)
    enqueue(dispatch, make_message(), make_message())
    dispatch.fail(failed, 0.0, timed_out=False)
    assert take(dispatch).batch[:2] == failed.batch


# Failover


def test_server_that_is_down_gets_nothing_until_it_is_readmitted() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2")
    assert dispatch.eject("s1", 0.0)
    assert not dispatch.eject("s1", 0.0)
    assert dispatch.health("s1") is Health.DOWN
    enqueue(dispatch, make_message())
    assert take(dispatch).lane.server == "s2"
    enqueue(dispatch, make_message())
    assert dispatch.next_attempt(0.0) is None
    assert dispatch.readmit("s1", 0.0, quick=True)
    assert not dispatch.readmit("s1", 0.0, quick=True)
    assert take(dispatch).lane.server == "s1"


def test_failed_batch_goes_to_the_other_server_before_all_others_in_its_order() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, *(make_message() for _ in range(3)))
    failed = take(dispatch)
    later = make_message()
    enqueue(dispatch, later)
    dispatch.fail(failed, 0.0, timed_out=False)
    assert dispatch.health("s1") is Health.DOWN
    dispatch.lane_idle(failed.lane)
    repeat = take(dispatch)
    assert (repeat.lane.server, repeat.batch) == ("s2", failed.batch)
    answer(dispatch, repeat)
    assert take(dispatch).batch == [later]


def test_those_who_wait_are_told_only_after_patience_with_every_server_down() -> None:
    dispatch = make_dispatch()
    messages = [make_message(), make_message()]
    dispatch.eject("s1", 0.0)
    enqueue(dispatch, messages[0], now=5.0)  # one server is left, so no clock runs
    assert dispatch.give_up(5.0) == []
    dispatch.eject("s2", 5.0)
    dispatch.eject("s1", 5.5)  # another failure does not start the clock anew
    assert dispatch.give_up(5.9) == []
    enqueue(dispatch, messages[1], now=5.9)
    assert dispatch.give_up(6.0) == messages
    assert dispatch.give_up(6.0) == []
    with pytest.raises(NoHealthyServer):
        dispatch.enqueue(make_message(), 6.0)


def test_readmission_ends_the_wait() -> None:
    dispatch = make_dispatch()
    message = make_message()
    enqueue(dispatch, message)
    dispatch.eject("s1", 0.0)
    dispatch.eject("s2", 0.0)
    dispatch.readmit("s2", 0.0, quick=False)
    assert dispatch.give_up(9.0) == []
    add_lanes(dispatch, "s2")
    assert take(dispatch, now=9.0).batch == [message]


# Hedging


def test_late_attempt_is_offered_to_another_server_and_the_first_answer_wins() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s1", "s2")
    enqueue(dispatch, make_message())
    frozen = take(dispatch)
    assert dispatch.hedge(HEDGE - 0.01) == 0
    assert dispatch.hedge(HEDGE) == 1
    assert dispatch.hedge(HEDGE) == 0, "offered once"
    hedge = take(dispatch, HEDGE)
    assert (hedge.lane.server, hedge.batch) == ("s2", frozen.batch)
    assert answer(dispatch, hedge, HEDGE + 0.01) == ["s1"]
    assert dispatch.health("s1") is Health.SLOW
    assert answer(dispatch, frozen, 8.0) == []
    assert dispatch.next_attempt(8.0) is None


def test_server_that_answers_before_its_hedge_is_not_slow() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2")
    enqueue(dispatch, make_message())
    first = take(dispatch)
    dispatch.hedge(HEDGE)
    hedge = take(dispatch, HEDGE)
    assert answer(dispatch, first, HEDGE + 0.01) == []
    assert answer(dispatch, hedge, HEDGE + 0.02) == []
    assert {dispatch.health(server) for server in ("s1", "s2")} == {Health.HEALTHY}


def test_slow_server_gets_nothing_new_while_another_one_is_healthy() -> None:
    dispatch = make_dispatch()
    slow = make_slow(dispatch, "s1")
    enqueue(dispatch, make_message())
    attempt = take(dispatch, 1.0)
    assert attempt.lane.server == "s2"
    enqueue(dispatch, make_message())
    assert dispatch.next_attempt(1.0) is None
    # but it may help where the healthy one is late
    assert dispatch.hedge(1.0 + HEDGE) == 1
    hedge = take(dispatch, 1.0 + HEDGE)
    assert (hedge.lane, hedge.batch) == (slow, attempt.batch)


def test_slow_servers_serve_when_no_other_is_left() -> None:
    dispatch = make_dispatch()
    make_slow(dispatch, "s1")
    dispatch.eject("s2", 1.0)
    enqueue(dispatch, make_message())
    assert take(dispatch, 1.0).lane.server == "s1"


def test_many_that_waited_for_a_server_that_is_back_but_slow_are_sent() -> None:
    dispatch = make_dispatch(max_batch=50, max_batch_bytes=10_000, max_waiting=50)
    add_lanes(dispatch, "s1", "s2")
    for server in ("s1", "s2"):
        dispatch.eject(server, 0.0)
    enqueue(dispatch, *(make_message() for _ in range(30)))
    dispatch.readmit("s2", 1.0, quick=False)
    assert len(take(dispatch, 1.0).batch) == 30


def test_many_that_come_while_every_server_is_held_up_are_sent() -> None:
    dispatch = make_dispatch(max_batch=50, max_batch_bytes=10_000, max_waiting=50)
    add_lanes(dispatch, "s1", "s2", "s1", "s2")
    for _ in range(2):
        enqueue(dispatch, make_message())
        take(dispatch)
    enqueue(dispatch, *(make_message() for _ in range(30)), now=HEDGE)
    assert len(take(dispatch, HEDGE).batch) == 30


def test_slow_probe_does_not_make_a_slow_server_healthy() -> None:
    dispatch = make_dispatch()
    make_slow(dispatch, "s1")
    assert not dispatch.readmit("s1", 0.0, quick=False)
    assert dispatch.health("s1") is Health.SLOW
    assert dispatch.readmit("s1", 0.0, quick=True)
    assert dispatch.health("s1") is Health.HEALTHY


def test_nothing_is_offered_that_no_other_server_can_take() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1")
    enqueue(dispatch, make_message())
    take(dispatch)
    dispatch.eject("s2", 0.0)
    assert dispatch.hedge(HEDGE) == 0
    dispatch.readmit("s2", 0.0, quick=True)
    assert dispatch.hedge(HEDGE) == 1


def test_failure_of_a_hedged_attempt_sends_nothing_twice_to_the_same_server() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s2", "s2")
    enqueue(dispatch, make_message())
    frozen = take(dispatch)
    dispatch.hedge(HEDGE)
    hedge = take(dispatch, HEDGE)
    dispatch.fail(frozen, 2.0, timed_out=True)
    assert dispatch.next_attempt(2.0) is None, "the hedge is under way still"
    dispatch.fail(hedge, 2.0, timed_out=False)
    dispatch.readmit("s2", 0.0, quick=True)
    assert take(dispatch, 2.0).batch == frozen.batch


def make_slow(dispatch: Dispatch, server: str) -> Lane:
    """Have another server overtake this one; returns a lane of it that is idle."""
    slow, other = add_lanes(dispatch, server, "s2")
    enqueue(dispatch, make_message())
    late = take(dispatch)
    assert late.lane is slow
    dispatch.hedge(HEDGE)
    assert answer(dispatch, take(dispatch, HEDGE), HEDGE) == [server]
    answer(dispatch, late, HEDGE)
    assert other.server == "s2"
    return slow


def test_hedge_delay_follows_what_is_usual() -> None:
    delay = HedgeDelay(floor=0.05, ceiling=1.0)
    assert delay.seconds == 1.0, "nothing is known yet"
    for _ in range(100):
        delay.record(0.002)
    assert delay.seconds == 0.05
    for _ in range(500):
        delay.record(0.1)
    assert delay.seconds == pytest.approx(0.3)
    for _ in range(500):
        delay.record(5.0)
    assert delay.seconds == 1.0


# The budget


def test_budget_pays_for_a_share_of_the_messages() -> None:
    budget = Budget(0.2)
    while budget.spend(0.0):
        pass
    for _ in range(100):
        budget.earn()
    assert sum(budget.spend(0.0) for _ in range(100)) in (19, 20)


def test_time_pays_for_what_nothing_else_pays_for() -> None:
    budget = Budget(0.0)
    while budget.spend(0.0):
        pass
    assert not budget.spend(0.5 / Budget.PER_SECOND)
    assert budget.spend(1.1 / Budget.PER_SECOND)
    assert not budget.spend(1.2 / Budget.PER_SECOND)


def test_failed_hedge_is_repeated_although_the_first_attempt_is_still_open() -> None:
    dispatch = make_dispatch("s1", "s2", "s3")
    add_lanes(dispatch, "s1", "s2", "s3")
    message = make_message()
    enqueue(dispatch, message)
    frozen = take(dispatch)
    assert dispatch.hedge(HEDGE) == 1
    dispatch.fail(take(dispatch, HEDGE), HEDGE, timed_out=False)
    assert dispatch.hedge(HEDGE) == 1, "the next look offers it again"
    third = take(dispatch, HEDGE)
    assert third.batch == [message]
    assert third.lane.server != frozen.lane.server


def test_one_stuck_attempt_does_not_slow_down_what_its_server_answers_in_time() -> None:
    dispatch = make_dispatch("s1")
    add_lanes(dispatch, "s1", "s1")
    enqueue(dispatch, make_message())
    take(dispatch, 0.0)
    for number in range(3):  # each is answered at once, and the next one need not wait
        enqueue(dispatch, make_message())
        now = HEDGE + number / 1000
        answer(dispatch, take(dispatch, now), now)


def count_sent(dispatch: Dispatch, now: float) -> int:
    """How many messages all lanes that have room are given now."""
    sent = 0
    while (attempt := dispatch.next_attempt(now)) is not None:
        sent += len(attempt.batch)
    return sent


def test_hedges_and_repeats_after_time_outs_stay_within_the_budget() -> None:
    dispatch = make_dispatch(max_batch=200, max_batch_bytes=10**6, max_waiting=1000)
    add_lanes(dispatch, *["s1"] * 100, *["s2"] * 100)
    enqueue(dispatch, *(make_message(deadline=1e9) for _ in range(200)))
    dispatch.eject("s2", 0.0)
    attempt = take(dispatch)
    dispatch.readmit("s2", 0.0, quick=True)
    assert len(attempt.batch) == 200
    hedged = dispatch.hedge(HEDGE)
    assert 90 <= hedged <= 91
    dispatch.fail(attempt, 2.0, timed_out=True)
    dispatch.readmit(attempt.lane.server, 2.0, quick=True)
    assert count_sent(dispatch, 2.0) <= 91 + 2 * Budget.PER_SECOND, "time has paid, too"
    # what could not be paid for is not lost: new messages pay for it, and so does time
    enqueue(dispatch, *(make_message(deadline=1e9) for _ in range(10)))
    assert 10 < count_sent(dispatch, 3.0) < 30
    assert sum(count_sent(dispatch, float(second)) for second in range(4, 60)) > 50


def test_nobody_pays_for_what_nobody_waits_for() -> None:
    dispatch = make_dispatch(max_batch=60, max_batch_bytes=10**6, max_waiting=100, retry_share=0.0)
    add_lanes(dispatch, "s1", "s2")
    messages = [make_message(deadline=1e9) for _ in range(60)]
    enqueue(dispatch, *messages)
    dispatch.fail(take(dispatch), 2.0, timed_out=True)
    for message in messages:
        dispatch.finish(message)
    dispatch.readmit("s1", 2.0, quick=True)
    assert dispatch.next_attempt(2.0) is None
    assert dispatch.next_look(2.0) > 0.01, "nothing waits any more"


def test_late_failure_says_nothing_of_a_server_that_was_let_in_since() -> None:
    dispatch = make_dispatch()
    add_lanes(dispatch, "s1", "s1")
    enqueue(dispatch, make_message())
    old = take(dispatch)
    dispatch.eject("s1", 1.0)
    dispatch.readmit("s1", 1.5, quick=True)
    dispatch.fail(old, 2.0, timed_out=True)
    assert dispatch.health("s1") is Health.HEALTHY
    repeat = take(dispatch, 2.0)
    assert repeat.batch == old.batch
    dispatch.fail(repeat, 4.0, timed_out=True)
    assert dispatch.health("s1") is Health.DOWN


def test_repeats_after_a_refused_connection_are_free() -> None:
    """The server never got the batch, so sending it to another one repeats nothing."""
    dispatch = make_dispatch(max_batch=50, max_batch_bytes=10**6, max_waiting=100, retry_share=0.0)
    add_lanes(dispatch, "s1")
    enqueue(dispatch, *(make_message() for _ in range(50)))
    attempt = take(dispatch)
    add_lanes(dispatch, "s2")
    dispatch.fail(attempt, 0.0, timed_out=False)
    assert count_sent(dispatch, 0.0) == 50


@pytest.mark.parametrize("error", [QueueFull, NoHealthyServer, DeadlinePassed])
def test_each_way_not_to_deliver_is_a_dispatch_error(error: type[Exception]) -> None:
    assert issubclass(error, DispatchError)


SERVERS = ("s1", "s2", "s3")
MAX_BATCH, MAX_BYTES, MAX_WAITING, SHARE = 3, 250, 24, 0.5


class DispatchMachine(RuleBasedStateMachine):
    """Any interleaving of arrivals, answers, failures, hedges, probes and time.

    What must hold: a message that its sender waits for is somewhere it can be sent from, or on its
    way; it is answered once, only by an attempt that carried it; no server has it twice at a time;
    one that is down gets nothing; and repeats stay within the budget.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.dispatch = make_dispatch(
            *SERVERS,
            max_batch=MAX_BATCH,
            max_waiting=MAX_WAITING,
            max_batch_bytes=MAX_BYTES,
            retry_share=SHARE,
        )
        self.messages: list[Message] = []
        self.open: list[Attempt] = []
        self.sent: dict[Message, int] = {}
        self.free_repeats = 0
        self.admitted = dict.fromkeys(SERVERS, -1.0)

    @initialize(lanes=st.lists(st.sampled_from(SERVERS), min_size=2, max_size=8))
    def start(self, lanes: list[str]) -> None:
        add_lanes(self.dispatch, *lanes)

    @rule(ttl=st.sampled_from([0.5, 2.0, 100.0]), size=st.integers(60, 300))
    def arrive(self, ttl: float, size: int) -> None:
        message = make_message(self.now + ttl, size)
        waiting = sum(other.waiting for other in self.messages)
        try:
            self.dispatch.enqueue(message, self.now)
        except NoHealthyServer:
            assert all(self.dispatch.health(server) is Health.DOWN for server in SERVERS)
        except QueueFull:
            assert waiting == MAX_WAITING
        else:
            assert waiting < MAX_WAITING
            self.messages.append(message)

    @rule(count=st.integers(_WORTH_SHARING, MAX_WAITING))
    def many_arrive(self, count: int) -> None:
        for _ in range(count):
            self.arrive(ttl=2.0, size=60)

    @rule()
    def pump(self) -> None:
        while (attempt := self.dispatch.next_attempt(self.now)) is not None:
            server = attempt.lane.server
            assert self.dispatch.health(server) is not Health.DOWN
            assert 1 <= len(attempt.batch) <= MAX_BATCH
            size = sum(len(message.token) for message in attempt.batch)
            assert size <= MAX_BYTES or len(attempt.batch) == 1
            for message in attempt.batch:
                assert not message.done
                assert message.deadline > self.now
                assert not any(
                    message in other.batch and other.lane.server == server for other in self.open
                )
                self.sent[message] = self.sent.get(message, 0) + 1
            self.open.append(attempt)

    def _pick(self, data: st.DataObject) -> Attempt:
        attempt = data.draw(st.sampled_from(self.open))
        self.open.remove(attempt)
        return attempt

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        attempt = self._pick(data)
        before = {message: message.done for message in attempt.batch}
        finished = [message for message in attempt.batch if self.dispatch.finish(message)]
        assert finished == [message for message, done in before.items() if not done]
        for server in self.dispatch.succeed(attempt, finished, self.now):
            assert server != attempt.lane.server
        self.dispatch.lane_idle(attempt.lane)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), timed_out=st.booleans())
    def fail(self, data: st.DataObject, timed_out: bool) -> None:
        attempt = self._pick(data)
        if not timed_out:
            self.free_repeats += len(attempt.batch)
        server = attempt.lane.server
        before = self.dispatch.health(server)
        self.dispatch.fail(attempt, self.now, timed_out=timed_out)
        of_now = attempt.began >= self.admitted[server]
        assert self.dispatch.health(server) is (Health.DOWN if of_now else before)
        self.dispatch.lane_idle(attempt.lane)

    @rule(server=st.sampled_from(SERVERS), quick=st.booleans())
    def probe_succeeds(self, server: str, quick: bool) -> None:
        if self.dispatch.health(server) is Health.DOWN:
            self.admitted[server] = self.now
        self.dispatch.readmit(server, self.now, quick=quick)
        assert self.dispatch.health(server) is not Health.DOWN

    @rule(server=st.sampled_from(SERVERS))
    def probe_fails(self, server: str) -> None:
        self.dispatch.eject(server, self.now)

    @rule(seconds=st.sampled_from([0.02, HEDGE, 0.6, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.dispatch.hedge(self.now)
        for message in self.messages:
            if message.deadline <= self.now:
                self.dispatch.finish(message)  # its sender is told 504 and goes
        for message in self.dispatch.give_up(self.now):
            assert self.dispatch.finish(message)  # its sender is told 503 and goes

    @invariant()
    def nobody_is_forgotten(self) -> None:
        unpaid = self.dispatch._unpaid  # the only place that leaves no mark on the message
        for message in self.messages:
            if not message.done:
                assert message.waiting or message.repeating or message.trying or message in unpaid

    @invariant()
    def repeats_are_paid_for(self) -> None:
        repeats = sum(count - 1 for count in self.sent.values())
        paid = Budget._START + SHARE * len(self.messages) + Budget.PER_SECOND * self.now
        assert repeats <= paid + self.free_repeats

    def teardown(self) -> None:
        """Whatever happened: once servers are well, all that is waited for is sent and answered."""
        for lost in self.open:
            self.dispatch.fail(lost, self.now, timed_out=False)
            self.dispatch.lane_idle(lost.lane)
        for server in SERVERS:
            self.dispatch.readmit(server, self.now, quick=True)
        add_lanes(self.dispatch, "s1")
        for _ in range(50):  # new messages earn what repeats cost
            self.dispatch._budget.earn()
        while (attempt := self.dispatch.next_attempt(self.now)) is not None:
            for message in attempt.batch:
                self.dispatch.finish(message)
            self.dispatch.succeed(attempt, attempt.batch, self.now)
            self.dispatch.lane_idle(attempt.lane)
        assert all(message.done for message in self.messages)


TestDispatch = DispatchMachine.TestCase
TestDispatch.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
