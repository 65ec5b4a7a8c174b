"""What the dispatch decides: which lane takes what, which server is out, who has waited too long.

Plain state and a clock that the caller reads: no input or output, no greenlet, no time of its own.
All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class DispatchError(Exception):
    """A message that will not be delivered. It may or may not have been stored."""


class QueueFull(DispatchError):
    """More messages wait than this coordinator holds."""


class NoHealthyServer(DispatchError):
    """Every server is ejected."""


class DeadlinePassed(DispatchError):
    """No server answered for this message in time."""


@dataclass(eq=False)
class Message:
    """A sealed message on its way to the store; ``deadline`` covers all tries."""

    message_id: bytes
    client: str
    token: str
    deadline: float


@dataclass(eq=False)
class Lane:
    """One kept-alive connection to one server, which carries one batch at a time."""

    server: str


@dataclass(frozen=True)
class Assignment:
    """A lane, and the batch that it is to send."""

    lane: Lane
    batch: list[Message]


class Dispatch:
    """The queue of one worker process, its idle lanes, and which servers are out.

    Servers pull: a lane that has nothing to do takes what waits, so an idle server gets the next
    message, a fast one gets more, and one that is dead or frozen gets none.
    """

    def __init__(
        self,
        servers: Iterable[str],
        *,
        max_batch: int,
        max_waiting: int,
        max_batch_bytes: int,
        patience: float,
    ) -> None:
        """``patience``: seconds without any healthy server before those who wait are told so."""
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_batch_bytes = max_batch_bytes
        self._patience = patience
        self._waiting: deque[Message] = deque()
        self._idle: deque[Lane] = deque()
        self._healthy = dict.fromkeys(servers, True)
        self._none_healthy_since: float | None = None

    def is_healthy(self, server: str) -> bool:
        """Whether lanes of this server get work."""
        return self._healthy[server]

    def enqueue(self, message: Message, now: float) -> None:
        """Take a message in. Raises QueueFull, or NoHealthyServer once patience has run out."""
        if self._out_of_patience(now):
            raise NoHealthyServer
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull
        self._waiting.append(message)

    def put_back(self, batch: Sequence[Message]) -> None:
        """Put a failed batch at the head of the queue, in its order: it has waited longest."""
        self._waiting.extendleft(reversed(batch))

    def withdraw(self, message: Message) -> None:
        """Forget a message whose sender no longer waits."""
        if message in self._waiting:
            self._waiting.remove(message)

    def lane_idle(self, lane: Lane) -> None:
        """A lane has nothing to do; lanes take work in the order in which they said so."""
        self._idle.append(lane)

    def next_assignment(self, now: float) -> Assignment | None:
        """The idle lane whose turn it is and its batch, or None when nobody can take anything."""
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft()  # its sender has been answered
        if not self._waiting:
            return None
        for lane in self._idle:
            if self._healthy[lane.server]:
                self._idle.remove(lane)
                return Assignment(lane, self._take_batch(now))
        return None

    def eject(self, server: str, now: float) -> bool:
        """Take a server out after a failure. Whether it was in."""
        was_healthy, self._healthy[server] = self._healthy[server], False
        if not any(self._healthy.values()) and self._none_healthy_since is None:
            self._none_healthy_since = now
        return was_healthy

    def readmit(self, server: str) -> bool:
        """Let a server in again after a probe succeeded. Whether it was out."""
        was_healthy, self._healthy[server] = self._healthy[server], True
        self._none_healthy_since = None
        return not was_healthy

    def give_up(self, now: float) -> list[Message]:
        """Those who wait although no server has been healthy for longer than patience allows."""
        if not self._out_of_patience(now):
            return []
        stranded = list(self._waiting)
        self._waiting.clear()
        return stranded

    def _out_of_patience(self, now: float) -> bool:
        since = self._none_healthy_since
        return since is not None and now - since >= self._patience

    def _take_batch(self, now: float) -> list[Message]:
        batch: list[Message] = []
        size = 0
        while self._waiting and len(batch) < self._max_batch:
            message = self._waiting[0]
            if batch and size + len(message.token) > self._max_batch_bytes:
                break
            self._waiting.popleft()
            if message.deadline > now:
                batch.append(message)
                size += len(message.token)
        return batch
