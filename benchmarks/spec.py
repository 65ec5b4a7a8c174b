"""What the load generator is told, and what it tells back."""

from __future__ import annotations

import msgspec


class ClientFiles(msgspec.Struct, frozen=True):
    """A client: the folder of its cert.pem, key.pem and ca.pem, and its payload keys."""

    folder: str
    keys: str


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One load. Times in seconds."""

    port: int
    """Of the relay, on 127.0.0.1."""
    clients: list[ClientFiles]
    """Connections are shared out among them in turn."""
    connections: int
    """Opened before the clock starts."""
    messages: int
    """How many are sealed before the clock starts; the load ends when they run out."""
    payload_bytes: int
    seconds: float
    """How long messages are sent."""
    rate: float = 0.0
    """Messages a second, whatever the answers do; 0: each connection sends when it is answered."""
    drain: float = 30.0
    """How long to wait for answers after the last message; what is left then has failed."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What became of one message that was sent."""

    due: float
    """When it was to be sent, in seconds since the load began."""
    seconds: float
    """From then until its answer was complete."""
    status: int
    """The answer's status code; 0 when there was none."""
    message_id: str


class LoadResult(msgspec.Struct, frozen=True):
    """Everything that was sent, in the order of the answers."""

    answers: list[Answer]
    reconnects: int
    """Connections that the relay closed and the generator opened again."""
    exhausted: bool
    """Whether the sealed messages ran out before the time was over."""
    cpu_seconds: float
    """What the generator itself used while the load ran."""
