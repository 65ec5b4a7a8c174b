"""Who may wait at the door, and for how long: decisions about connections, without a socket.

A connection is a *stranger* until its peer has shown a leaf of ours, then a *member*. Strangers
are counted by address, members by identity, so neither takes the other's places. Where one peer
has too many, it loses its own oldest: whoever comes next gets in, also from the same address.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

RECORD = 16_384
"""Bytes that one TLS record holds at most (RFC 8446 §5.1)."""
_RECORD_HEAD = 5
"""Bytes before them: what the record is, two of a version, two with its length."""
_HANDSHAKE = b"\x16"
LONGEST_HELLO = _RECORD_HEAD + RECORD
HANDSHAKE_DEADLINE = 5.0
"""Seconds for a whole handshake, from the connection's arrival."""
HEAD_DEADLINE = 10.0
"""Seconds for a request's head, from its first byte."""
KEEP_ALIVE = 75.0
"""Seconds for which a connection is kept without a request."""
HANDSHAKES = 2_000
"""Handshakes under way in one worker, whoever they come from."""
_FEW = 64
"""Handshakes of one address that are done well within their deadline, one after the other."""
_RESERVE = 256
"""File descriptors for all but accepted connections: lanes, the store, files, the listener."""


class Crowd(Generic[T]):
    """Things that wait, by the peer they belong to, in the order of their coming.

    Everything takes constant time, so that a flood pays for itself only.
    """

    def __init__(self, few: int = _FEW) -> None:
        """``few`` of a peer's things take their turns in the order of their coming."""
        self._few = few
        self._peers: dict[str, dict[T, None]] = {}
        self._peer_of: dict[T, str] = {}
        # peers by how many they have, so that the one with most is found without a search
        self._by_size: dict[int, dict[str, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return len(self._peer_of)

    def __iter__(self) -> Iterator[T]:
        return iter(self._peer_of)

    def __contains__(self, thing: T) -> bool:
        return thing in self._peer_of

    def add(self, peer: str, thing: T) -> None:
        """Let ``thing`` join as its peer's newest. It must not be here yet."""
        things = self._peers.setdefault(peer, {})
        self._resize(peer, len(things), len(things) + 1)
        things[thing] = None
        self._peer_of[thing] = peer

    def discard(self, thing: T) -> None:
        """Let ``thing`` go, if it is here."""
        peer = self._peer_of.pop(thing, None)
        if peer is None:
            return
        things = self._peers[peer]
        self._resize(peer, len(things), len(things) - 1)
        del things[thing]
        if not things:
            del self._peers[peer]

    def count(self, peer: str) -> int:
        """How many this peer has."""
        return len(self._peers.get(peer, ()))

    def of(self, peer: str) -> Iterable[T]:
        """What this peer has, the oldest first."""
        return self._peers.get(peer, ())

    def of_largest(self) -> Iterable[T]:
        """What the peer has that has most, the oldest first."""
        return self.of(next(iter(self._by_size.get(self._largest, ())), ""))

    def oldest(self, peer: str) -> T | None:
        """What has been here longest of this peer's."""
        return next(iter(self.of(peer)), None)

    def oldest_of_largest(self) -> T | None:
        """What has been here longest of the peer that has most."""
        return next(iter(self.of_largest()), None)

    def peer_of(self, thing: T) -> str | None:
        """Whose it is, if it is here."""
        return self._peer_of.get(thing)

    def next_peer(self) -> str:
        """Whose turn it is: the peers take turns. There must be one."""
        return next(iter(self._peers))

    def take(self, peer: str) -> T:
        """Remove and return one thing of a peer that has some, and whose next turn is the last.

        It is the one that came first of a few. Of more it is the last, because under a flood of its
        peer's the first would wait longer than it may.
        """
        things = self._peers[peer]
        thing = next(iter(things) if len(things) <= self._few else reversed(things))
        self.discard(thing)
        if peer in self._peers:
            self._peers[peer] = self._peers.pop(peer)
        return thing

    def _resize(self, peer: str, before: int, after: int) -> None:
        if before:
            del self._by_size[before][peer]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, {})[peer] = None
        # sizes change by one, so the largest does as well
        if after > self._largest or (before == self._largest and before not in self._by_size):
            self._largest = after


class Line(Generic[T]):
    """Things that wait for a turn: every other one is for a peer with few connections.

    The peers take turns, as in a crowd, and in between do those with fewest connections of all. So
    nobody waits for more than two rounds of everyone, and who has few connections not for more than
    two of all who have as few.
    """

    def __init__(self, few: int = _FEW) -> None:
        """``few``: see Crowd."""
        self._things: Crowd[T] = Crowd(few)
        # peers by the binary logarithm of how many connections they have
        self._groups: dict[int, dict[str, None]] = {}
        self._group_of: dict[str, int] = {}
        self._next_of_fewest = True

    def add(self, peer: str, thing: T, connections: int) -> None:
        """Let ``thing`` join, of a peer with so many connections. It must not be here yet."""
        self._things.add(peer, thing)
        group = connections.bit_length()
        if peer not in self._group_of:
            self._join_group(peer, group)
        elif self._group_of[peer] != group:
            self._leave_group(peer)
            self._join_group(peer, group)

    def discard(self, thing: T) -> None:
        """Let ``thing`` go, if it is here."""
        peer = self._things.peer_of(thing)
        self._things.discard(thing)
        if peer is not None and not self._things.count(peer):
            self._leave_group(peer)

    def take(self) -> T | None:
        """Remove and return the thing whose turn it is."""
        if not self._groups:
            return None
        if self._next_of_fewest:
            peer = next(iter(self._groups[min(self._groups)]))
        else:
            peer = self._things.next_peer()
        self._next_of_fewest = not self._next_of_fewest
        thing = self._things.take(peer)
        group = self._leave_group(peer)
        if self._things.count(peer):
            self._join_group(peer, group)
        return thing

    def _join_group(self, peer: str, group: int) -> None:
        self._groups.setdefault(group, {})[peer] = None
        self._group_of[peer] = group

    def _leave_group(self, peer: str) -> int:
        group = self._group_of.pop(peer)
        del self._groups[group][peer]
        if not self._groups[group]:
            del self._groups[group]
        return group


class RefusalLog:
    """Tells of refused connections: each while they are few, by number in a flood.

    So strangers cannot fill the journal, or push from it what matters.
    """

    LINES = 50
    """Refusals told one by one in a window."""
    WINDOW = 10.0
    """Seconds."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told = 0
        self._ends = 0.0
        self._untold: Counter[str] = Counter()

    def note(self, peer: str, reason: str, now: float) -> None:
        """Tell of a refused connection from the address ``peer``, at ``now`` (monotonic)."""
        self.tick(now)
        if self._told < self.LINES:
            self._told += 1
            self._log.info("Refused %s: %s", peer, reason)
        else:
            self._untold[reason] += 1

    def tick(self, now: float) -> None:
        """Sum up when a window has ended. To be called from time to time."""
        if now < self._ends:
            return
        if self._untold:
            reasons = ", ".join(f"{count} {what}" for what, count in self._untold.most_common(5))
            number = self._untold.total()
            self._log.warning("Refused %d more in the last %g s: %s", number, self.WINDOW, reasons)
            self._untold.clear()
        self._told = 0
        self._ends = now + self.WINDOW


@dataclass(frozen=True)
class Places:
    """How many connections one worker holds."""

    members: int
    strangers: int


def share_places(wanted: int, descriptors: int) -> Places:
    """Places for ``wanted`` members, or for as many as there are file descriptors.

    Accepting must never run out of descriptors: what it fails on stays in the queue and holds up
    everyone behind it.
    """
    usable = max(descriptors - _RESERVE, 4)
    strangers = min(HANDSHAKES, usable // 4)
    return Places(min(wanted, usable - strangers), strangers)


def hello_size(said: bytes) -> int:
    """Bytes that must have come before a handshake can begin, when it begins with ``said``.

    It takes the first record in full (RFC 8446 §5.1), which carries a ClientHello. What is none is
    not waited for: TLS says what is wrong with it.
    """
    if not said.startswith(_HANDSHAKE):
        return 0
    if len(said) < _RECORD_HEAD:
        return _RECORD_HEAD
    size = _RECORD_HEAD + int.from_bytes(said[3:_RECORD_HEAD], "big")
    return size if size <= LONGEST_HELLO else 0


def name_stranger(address: str) -> str:
    """Whom a connection from an address is counted to: the address, or its IPv6 network.

    A /64 is what one host is given (RFC 4291 §2.5.1), so it can come from any address in there.
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
