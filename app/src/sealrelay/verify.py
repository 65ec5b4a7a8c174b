"""Compares what a load's clients were told with what the store holds.

In the manner of Jepsen's ``set-full`` checker (jepsen.checker): each message is an element that is
added once, and one read at the end says which are there. A message is known by the run and number
in its plaintext, not by its message id: the ids are part of what is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from sealrelay.history import Fate, History


class Found(msgspec.Struct, frozen=True):
    """A stored message of the load's run."""

    number: int
    client: str
    message_id: str
    """64 hexadecimal digits."""


class Verdict(msgspec.Struct):
    """What became of each message; numbers of messages. The first group are no faults."""

    sent: int = 0
    acknowledged: int = 0
    stored_once: int = 0
    """Acknowledged, and in the store once."""
    unknown_stored: int = 0
    """No certain answer, and in the store: Jepsen calls them recovered."""
    unknown_absent: int = 0
    refused_absent: int = 0

    lost: list[int] = []
    """Acknowledged, and not in the store."""
    doubled: list[int] = []
    """In the store more than once."""
    never_sent: list[int] = []
    """In the store, and not in the history."""
    refused_stored: list[int] = []
    """In the store, although the client was told that it would not be."""
    altered: list[int] = []
    """In the store under another message id or client than it was sent with."""

    @property
    def faults(self) -> dict[str, list[int]]:
        """The messages that are not as they should be, by what is wrong with them."""
        named = {
            "lost": self.lost,
            "stored twice": self.doubled,
            "stored, never sent": self.never_sent,
            "refused, stored all the same": self.refused_stored,
            "stored as another's, or under another id": self.altered,
        }
        return {fault: numbers for fault, numbers in named.items() if numbers}


def compare(history: History, stored: Iterable[Found]) -> Verdict:
    """Judge a history by all that the store holds of its run."""
    copies: Counter[int] = Counter()
    altered = set()
    for found in stored:
        copies[found.number] += 1
        sent = history.sent.get(found.number)
        if sent and (sent.message_id, sent.client) != (found.message_id, found.client):
            altered.add(found.number)
    verdict = Verdict(
        sent=len(history.sent),
        doubled=sorted(number for number, count in copies.items() if count > 1),
        never_sent=sorted(copies.keys() - history.sent.keys()),
        altered=sorted(altered),
    )
    for number in sorted(history.sent):
        match history.fate(number), copies[number]:
            case Fate.ACKNOWLEDGED, 0:
                verdict.lost.append(number)
            case Fate.ACKNOWLEDGED, 1:
                verdict.stored_once += 1
            case Fate.REFUSED, 0:
                verdict.refused_absent += 1
            case Fate.REFUSED, _:
                verdict.refused_stored.append(number)
            case Fate.UNKNOWN, 0:
                verdict.unknown_absent += 1
            case Fate.UNKNOWN, _:
                verdict.unknown_stored += 1
        verdict.acknowledged += history.fate(number) is Fate.ACKNOWLEDGED
    return verdict
