"""What the dispatch decides: who sends what where, when to hedge, whom to eject, whom to give up.

Plain state and a clock that the caller reads: no input or output, no greenlet, no time of its own.
All times are seconds of one monotonic clock.

Servers pull. A lane that has nothing to do takes what waits, as one batch, so an idle server gets
the next message, a fast one gets more, and one that is dead or frozen gets none. An attempt that is
not answered in time is *hedged*: its messages are offered to another server as well, and the first
answer wins (J. Dean and L. A. Barroso, "The Tail at Scale", 2013). That is safe here, because a
message id is stored once.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_SHORTEST_LOOK = 0.01
"""Seconds between two looks at what is late, at least."""

_WORTH_SHARING = 16
"""Messages that one server may take for itself: to open and store them costs about as much as a
batch more would."""

_SMALL = 4
"""Messages in a batch that is no reason for others to wait and go together."""


class DispatchError(Exception):
    """A message that will not be delivered. It may or may not have been stored."""


class QueueFull(DispatchError):
    """More messages wait than this coordinator holds."""


class NoHealthyServer(DispatchError):
    """Every server is down."""


class DeadlinePassed(DispatchError):
    """No server answered for this message in time."""


class Health(enum.Enum):
    """What the dispatch thinks of a server."""

    HEALTHY = "healthy"
    SLOW = "slow"
    """Another server overtook it. Gets only what no healthy server can take."""
    DOWN = "down"
    """An attempt or a probe failed. Gets nothing."""


@dataclass(eq=False, slots=True)
class Message:
    """A sealed message on its way to the store; ``deadline`` covers all tries."""

    message_id: bytes
    client: str
    token: str
    deadline: float
    done: bool = False
    """Answered, or nobody waits for it any more: it is never sent again."""
    waiting: bool = False
    """New, and not taken by any lane yet."""
    repeating: bool = False
    """To be sent again."""
    trying: dict[str, Attempt] = field(default_factory=dict)
    """The open attempts with it, by server."""


@dataclass(eq=False)
class Lane:
    """One kept-alive connection to one server, which carries one batch at a time."""

    server: str


@dataclass(eq=False, slots=True)
class Attempt:
    """A batch on its way to a server in one of its lanes, begun at a time."""

    lane: Lane
    batch: list[Message]
    began: float
    hedged: bool = False


@dataclass(frozen=True)
class Limits:
    """How much the dispatch holds, packs together and repeats."""

    max_batch: int
    """Messages in one attempt."""
    max_batch_bytes: int
    """Bytes of tokens in one attempt of more than one message."""
    max_waiting: int
    """Messages that wait for a lane."""
    max_waiting_bytes: int
    """Bytes of their tokens."""
    patience: float
    """Seconds with every server down before those who wait are told so."""
    hedge_floor: float
    """Seconds: no attempt is hedged earlier, however fast servers are as a rule."""
    hedge_ceiling: float
    """Seconds: every attempt is hedged by then, however slow they are."""
    retry_share: float
    """Hedges and repeats after time-outs, as a share of all messages."""


class Budget:
    """What may be sent again: each new message earns a share of one re-send, up to a limit."""

    _LIMIT = 100.0
    _START = 50.0
    PER_SECOND = 5.0
    """Re-sends that are earned while one is wanted that nothing pays for."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = self._START
        self._owing_since: float | None = None

    def earn(self) -> None:
        """A new message came in."""
        self._left = min(self._LIMIT, self._left + self._share)

    def spend(self, now: float) -> bool:
        """Pay for one re-send, if there is enough; where there is not, time pays from then on."""
        if self._owing_since is not None:
            self._left = min(self._LIMIT, self._left + self.PER_SECOND * (now - self._owing_since))
        paid = self._left >= 1.0
        self._left -= paid
        self._owing_since = None if paid else now
        return paid


class HedgeDelay:
    """When an attempt is late: a few times the recent 99th percentile of all that were answered."""

    _FACTOR = 3.0
    _WINDOW = 500
    _RENEW = 50

    def __init__(self, floor: float, ceiling: float) -> None:
        self._floor, self._ceiling = floor, ceiling
        self._recent: deque[float] = deque(maxlen=self._WINDOW)
        self._news = 0
        self.seconds = ceiling
        """The delay as of now; the ceiling until enough is known."""

    def record(self, duration: float) -> None:
        """An attempt was answered after ``duration`` seconds."""
        self._recent.append(duration)
        self._news += 1
        if self._news >= self._RENEW:
            self._news = 0
            p99 = sorted(self._recent)[int(0.99 * (len(self._recent) - 1))]
            self.seconds = min(self._ceiling, max(self._floor, self._FACTOR * p99))


class Dispatch:
    """The queue of one worker process, its lanes, its open attempts, and the servers' health."""

    def __init__(self, servers: Iterable[str], limits: Limits) -> None:
        self._limits = limits
        self._health = dict.fromkeys(servers, Health.HEALTHY)
        # Both queues may hold messages that are done meanwhile; they are skipped when met.
        self._new: deque[Message] = deque()
        self._repeats: deque[Message] = deque()
        self._unpaid: deque[Message] = deque()  # repeats that the budget does not cover yet
        self._waiting = 0
        self._waiting_bytes = 0
        self._idle: dict[str, deque[Lane]] = {server: deque() for server in self._health}
        # the newest attempt of each server, while it is open
        self._newest: dict[str, Attempt | None] = dict.fromkeys(self._health)
        self._turns = list(self._health)  # who took a batch last comes last
        self._answered, self._answered_at = 0, -math.inf  # how many were answered last, and when
        self._open: dict[Attempt, None] = {}  # in the order in which they began
        self._budget = Budget(limits.retry_share)
        self._admitted = dict.fromkeys(self._health, -math.inf)  # when each was let in last
        self._all_down_since: float | None = None
        self.hedge_delay = HedgeDelay(limits.hedge_floor, limits.hedge_ceiling)

    def health(self, server: str) -> Health:
        """What is thought of a server."""
        return self._health[server]

    @property
    def waiting(self) -> int:
        """New messages that no lane has taken yet."""
        return self._waiting

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their tokens."""
        return self._waiting_bytes

    def count_idle_lanes(self, server: str) -> int:
        """Lanes to a server that have nothing to do."""
        return len(self._idle[server])

    def enqueue(self, message: Message, now: float) -> None:
        """Take a message in. Raises QueueFull, or NoHealthyServer once patience has run out."""
        if self._out_of_patience(now):
            raise NoHealthyServer
        size = self._waiting_bytes + len(message.token)
        if self._waiting >= self._limits.max_waiting or (
            self._waiting and size > self._limits.max_waiting_bytes
        ):
            raise QueueFull
        self._new.append(message)
        message.waiting = True
        self._waiting += 1
        self._waiting_bytes = size
        self._budget.earn()

    def finish(self, message: Message) -> bool:
        """A message is answered, or nobody waits for it any more. Whether that is news."""
        news, message.done = not message.done, True
        self._leave(message)
        return news

    def lane_idle(self, lane: Lane) -> None:
        """A lane has nothing to do."""
        self._idle[lane.server].append(lane)

    def next_attempt(self, now: float) -> Attempt | None:
        """A lane of the server whose turn it is, with a batch; None when none can take anything."""
        self._pay_repeats(now)
        for server in self._turns:
            if self._has_room(server, now) and (batch := self._take_batch(server, now)):
                self._turns.remove(server)
                self._turns.append(server)
                attempt = Attempt(self._idle[server].popleft(), batch, began=now)
                for message in batch:
                    message.trying[server] = attempt
                self._open[attempt] = None
                self._newest[server] = attempt
                return attempt
        return None

    def _has_room(self, server: str, now: float) -> bool:
        """Whether a server may be given a batch: in another lane only once its last is held up, and
        beside another server's only where that is small, or where enough waits for both.

        So what comes in the meantime goes in one batch, as long as answers come soon, and a batch
        costs about the same whatever is in it. A message that takes its time, or a large one, keeps
        the others waiting for little more than that.
        """
        own = self._newest[server]
        if not self._idle[server] or (own is not None and not self._is_held_up(own, now)):
            return False
        if self._repeats or self._waiting >= _WORTH_SHARING:
            return True
        return not any(
            other is not None
            and len(other.batch) > _SMALL
            and self._health[name] is Health.HEALTHY
            and not self._is_held_up(other, now)
            for name, other in self._newest.items()
        )

    def _is_held_up(self, attempt: Attempt, now: float) -> bool:
        return now - attempt.began >= self.hedge_delay.seconds / 2

    def is_open(self, attempt: Attempt) -> bool:
        """Whether an attempt has neither succeeded nor failed yet."""
        return attempt in self._open

    def succeed(self, attempt: Attempt, finished: Sequence[Message], now: float) -> list[str]:
        """A server has answered for its batch. ``finished``: those whose first answer this is.

        Returns the servers that this one has overtaken, which are slow from now on.
        """
        self._close(attempt)
        self._answered, self._answered_at = len(attempt.batch), now
        self.hedge_delay.record(now - attempt.began)
        overtaken = {
            server
            for message in finished
            for server, other in message.trying.items()
            if other.began < attempt.began
        }
        return [server for server in sorted(overtaken) if self._slow_down(server)]

    def fail(self, attempt: Attempt, now: float, *, timed_out: bool) -> None:
        """An attempt failed: its server is down, and its batch goes to another one.

        After a time-out the server may be at work on it still, so the repeat has to be paid for. An
        attempt from before the server was let in again says nothing about the server of now.
        """
        self._close(attempt)
        for message in attempt.batch:
            for other in message.trying.values():
                other.hedged = False  # what it was hedged with is gone; another may take it
            if message.done or message.repeating or message.trying:
                continue
            if timed_out and not self._budget.spend(now):
                self._unpaid.append(message)
            else:
                self._repeat(message)
        if attempt.began >= self._admitted[attempt.lane.server]:
            self.eject(attempt.lane.server, now)

    def eject(self, server: str, now: float) -> bool:
        """A server is down. Whether it was not before."""
        news, self._health[server] = self._health[server] is not Health.DOWN, Health.DOWN
        if self._all_down_since is None and set(self._health.values()) == {Health.DOWN}:
            self._all_down_since = now
        return news

    def readmit(self, server: str, now: float, *, quick: bool) -> bool:
        """A probe of a server succeeded, and was quick or not. Whether that changes anything."""
        before = self._health[server]
        if quick:
            self._health[server] = Health.HEALTHY
        elif before is Health.DOWN:
            self._health[server] = Health.SLOW
        if before is Health.DOWN:
            self._admitted[server] = now
        self._all_down_since = None
        return self._health[server] is not before

    def next_look(self, now: float) -> float:
        """When to see again what ``hedge``, ``give_up`` and ``next_attempt`` have, in seconds."""
        if self._waiting or self._repeats or self._unpaid or self._all_down_since is not None:
            return _SHORTEST_LOOK
        first = next((attempt.began for attempt in self._open if not attempt.hedged), now)
        # What begins later is late later still, at least by the floor.
        due = min(first + self.hedge_delay.seconds - now, self._limits.hedge_floor)
        return max(_SHORTEST_LOOK, due)

    def hedge(self, now: float) -> int:
        """Offer what is late to another server as well; returns how many messages.

        An attempt is late ``hedge_delay.seconds`` after it began. Only what another server could
        take is offered, and only what the budget pays for.
        """
        offered = 0
        for attempt in self._open:
            if attempt.began + self.hedge_delay.seconds > now:
                break
            if attempt.hedged:
                continue
            attempt.hedged = True
            for message in attempt.batch:
                if message.done or message.repeating or len(message.trying) > 1:
                    continue
                if not self._has_alternative(message):
                    attempt.hedged = False  # there may be one later
                    continue
                if not self._budget.spend(now):
                    attempt.hedged = False
                    return offered
                self._repeat(message)
                offered += 1
        return offered

    def give_up(self, now: float) -> list[Message]:
        """Those who wait although every server has been down for longer than patience allows."""
        if not self._out_of_patience(now):
            return []
        queued = [*self._repeats, *self._unpaid, *self._new]
        for queue in (self._repeats, self._unpaid, self._new):
            queue.clear()
        for message in queued:
            message.repeating = False
            self._leave(message)
        return [message for message in queued if not message.done]

    def _out_of_patience(self, now: float) -> bool:
        since = self._all_down_since
        return since is not None and now - since >= self._limits.patience

    def _leave(self, message: Message) -> None:
        """A message waits no longer, if it did."""
        if message.waiting:
            message.waiting = False
            self._waiting -= 1
            self._waiting_bytes -= len(message.token)

    def _close(self, attempt: Attempt) -> None:
        del self._open[attempt]
        server = attempt.lane.server
        if self._newest[server] is attempt:
            self._newest[server] = None
        for message in attempt.batch:
            del message.trying[attempt.lane.server]

    def _repeat(self, message: Message) -> None:
        if not message.done:
            message.repeating = True
            self._repeats.append(message)

    def _pay_repeats(self, now: float) -> None:
        while self._unpaid:
            if not self._unpaid[0].done and not self._budget.spend(now):
                return
            self._repeat(self._unpaid.popleft())

    def _slow_down(self, server: str) -> bool:
        if self._health[server] is not Health.HEALTHY:
            return False
        self._health[server] = Health.SLOW
        return True

    def _usable(self, server: str, message: Message) -> bool:
        """Whether a server may be given this message now: a slow one only where no healthy one is
        left that does not have it already."""
        if server in message.trying or self._health[server] is Health.DOWN:
            return False
        return self._health[server] is Health.HEALTHY or not any(
            health is Health.HEALTHY and other not in message.trying
            for other, health in self._health.items()
        )

    def _has_alternative(self, message: Message) -> bool:
        return any(self._usable(server, message) for server in self._health)

    def _take_batch(self, server: str, now: float) -> list[Message]:
        batch: list[Message] = []
        if self._health[server] is Health.DOWN:
            return batch
        most = self._limits.max_batch
        size = self._take(self._repeats, server, now, batch, 0, most)
        most = min(most, len(batch) + self._share(now))
        self._take(self._new, server, now, batch, size, most)
        return batch

    def _share(self, now: float) -> int:
        """How many of the new messages one server may take now: an equal part of all there are.

        Those that were answered just now are counted, as who sent them mostly sends again. Parts of
        different size would stay so: while one server has the large one, all others are soon done
        with the small one, and wait. Of many there is a part for each server and one for what is on
        its way between clients and coordinator; of a few only for one server at a time.
        """
        coming = self._answered if now - self._answered_at < self.hedge_delay.seconds / 2 else 0
        if self._waiting < _WORTH_SHARING:
            return math.ceil((self._waiting + coming) / 2) if coming else self._waiting
        at_work = [
            attempt
            for attempt in self._newest.values()
            if attempt is not None and not self._is_held_up(attempt, now)
        ]
        servers = len(at_work) + sum(
            health is Health.HEALTHY and self._newest[server] is None
            for server, health in self._health.items()
        )
        about = self._waiting + sum(len(attempt.batch) for attempt in at_work) + coming
        # Where all are slow or held up, whoever can take anything takes all.
        parts = max(1, servers + bool(coming or at_work))
        return max(_WORTH_SHARING, math.ceil(about / parts))

    def _take(
        self,
        queue: deque[Message],
        server: str,
        now: float,
        batch: list[Message],
        size: int,
        most: int,
    ) -> int:
        """Move what a server may have from the head of a queue to a batch of at most ``most``
        messages; returns its new size in bytes."""
        passed: list[Message] = []
        while queue and len(batch) < most:
            message = queue[0]
            if not message.done and message.deadline > now:
                if not self._usable(server, message):
                    if message.waiting:  # as for all that are new, so looking further is no use
                        break
                    passed.append(queue.popleft())
                    continue
                if batch and size + len(message.token) > self._limits.max_batch_bytes:
                    break
                batch.append(message)
                size += len(message.token)
            queue.popleft()
            message.repeating = False
            self._leave(message)
        queue.extendleft(reversed(passed))
        return size
