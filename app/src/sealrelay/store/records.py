"""What the store takes and tells, and how it fails."""

from __future__ import annotations

import msgspec


class StoreError(Exception):
    """The store did not take or give what was asked; nothing was acknowledged. One line.

    Whether records that were being added are there is unknown; adding them again is safe.
    """


class StoreFull(StoreError):
    """There is no room left to store a message."""


class ConnectionLost(StoreError):
    """The connection to the database broke; another one may work at once."""


class StoreMoved(StoreError):
    """A file of the database was moved, replaced or removed; the text says which, and what to do.

    What is written to a file that has no name is lost to everybody else.
    """


class SchemaOutdated(StoreError):
    """The tables are missing, or older than this release needs."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A message to be stored."""

    message_id: bytes
    client: str
    token: str
    sealed_at: int
    """Seconds since the epoch."""
    received_at: int
    """Milliseconds since the epoch."""
    server: str


class Stored(msgspec.Struct, frozen=True, gc=False):
    """What the store says of one record: it is there, since when, and thanks to whom."""

    replayed: bool
    """Whether it was there before."""
    server: str
    """The server that stored it."""


class Pruned(msgspec.Struct, frozen=True):
    """What one transaction removed, and how long that took."""

    removed: int
    """Messages."""
    deleting: float
    """Seconds for which they were being deleted; grows with their number."""
    holding: float
    """Seconds for which others could not write (SQLite): with the commit, without the wait for it
    to be this one's turn."""


class Replaced(msgspec.Struct, frozen=True):
    """What one transaction gave other tokens, and how long that took; as of ``Pruned``."""

    replaced: int
    """Messages."""
    replacing: float
    """Seconds for which it was being done; grows with their number."""
    holding: float
    """Seconds for which others could not write (SQLite)."""


class NewToken(msgspec.Struct, frozen=True):
    """Another token for a stored message, in place of the one that it has."""

    message_id: bytes
    old: str
    new: str
