"""Peers with bad manners: each kind holds as many connections open as it is let."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from tests.support.http import make_context

_TICK = 0.05
"""Seconds between two looks at what happened to the connections."""
_PATIENCE = 10.0
"""Seconds for connecting."""


@dataclass(frozen=True)
class Manners:
    """What one kind of stranger does: connect, shake hands or not, say something, then dawdle."""

    context: ssl.SSLContext | None = None
    at_once: bytes = b""
    bit_by_bit: bytes = b""


def silent() -> Manners:
    """Connects, and says nothing."""
    return Manners()


def half_hello() -> Manners:
    """Sends three bytes of a ClientHello."""
    return Manners(at_once=client_hello()[:3])


def slow_hello() -> Manners:
    """Sends a ClientHello byte by byte."""
    return Manners(bit_by_bit=client_hello())


def handshake(context: ssl.SSLContext) -> Manners:
    """Does its half of a handshake, with the leaf of the context or with none, and stays."""
    return Manners(_with_little_work(context))


def slow_head(folder: Path) -> Manners:
    """A leaf of ours, and a request's head byte by byte."""
    head = b"POST /api/data HTTP/1.1\r\nHost: here\r\nX-Slow: " + b"a" * 500
    return Manners(_with_little_work(make_context(folder)), bit_by_bit=head)


def slow_body(folder: Path, path: str) -> Manners:
    """A leaf of ours, and a request's body byte by byte."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        f"Content-Length: 500\r\n\r\n"
    )
    return Manners(_with_little_work(make_context(folder)), head.encode(), b" " * 400)


def _with_little_work(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same one, with which a handshake takes a stranger as little time as it can."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ecdh_curve("prime256v1")  # what a service takes
    return context


def client_hello() -> bytes:
    """How a TLS client begins, in full."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@dataclass
class Party:
    """Strangers of one kind from one address, and what became of them.

    ``closed`` counts connections that the service ended, ``failed`` those that never came to be;
    ``answers`` are the first bytes that came back on some.
    """

    port: int
    manners: Manners
    number: int
    source: str = "127.0.0.1"
    held: int = 0
    opened: int = 0
    closed: int = 0
    failed: int = 0
    answers: set[bytes] = field(default_factory=set)


def _connect(party: Party) -> socket.socket:
    # without a look for what an address means, as create_connection takes for each
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.settimeout(_PATIENCE)
        sock.bind((party.source, 0))
        sock.connect(("127.0.0.1", party.port))
        sock.setblocking(False)
        stack.pop_all()
    return sock


class _Held:
    """One connection. Where it was closed, only the next read tells."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self._rest = iter(party.manners.bit_by_bit)
        sock = _connect(party)
        context = party.manners.context
        self.shaking = context is not None
        self.sock = (
            sock
            if context is None
            else context.wrap_socket(
                sock, server_hostname="127.0.0.1", do_handshake_on_connect=False
            )
        )
        try:
            self.go_on()
        except OSError:
            self.sock.close()
            raise

    def go_on(self) -> None:
        """Shake hands as far as it goes, then say what is to be said at once."""
        try:
            if self.shaking:
                assert isinstance(self.sock, ssl.SSLSocket)
                self.sock.do_handshake()
                self.shaking = False
            self.sock.send(self.party.manners.at_once)
        except ssl.SSLWantReadError:
            pass

    def send_byte(self) -> None:
        byte = None if self.shaking else next(self._rest, None)
        with contextlib.suppress(OSError):
            if byte is not None:
                self.sock.send(bytes([byte]))

    def read(self) -> bytes | None:
        """What came; empty when the service has closed it, None when nothing did."""
        try:
            if self.shaking:
                self.go_on()
                return None
            return self.sock.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError:
            return b""


class Strangers:
    """A thread that keeps the parties' connections open, from entering to leaving.

    Another takes the place of each that the service ends, at most ``rate`` a second in all. Those
    who send byte by byte send one each ``beat`` seconds.
    """

    def __init__(self, *parties: Party, rate: float = 1000, beat: float = 0.3) -> None:
        self._parties, self._rate, self._beat = parties, rate, beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._selector = selectors.DefaultSelector()
        self._due: dict[_Held, float] = {}
        """When who sends byte by byte sends the next one, the soonest first."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()

    def _run(self) -> None:
        looked = time.monotonic()
        allowed = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            allowed = min(allowed + (now - looked) * self._rate, self._rate * 2 * _TICK)
            looked = now
            missing = [party for party in self._parties for _ in range(party.number - party.held)]
            random.shuffle(missing)
            for party in missing[: int(allowed)]:
                allowed -= 1
                self._open(party)
            for key, _ in self._selector.select(_TICK):
                self._read(key.data)
            while (held := next(iter(self._due), None)) and self._due[held] <= now:
                held.send_byte()
                del self._due[held]
                self._due[held] = time.monotonic() + self._beat

    def _open(self, party: Party) -> None:
        try:
            held = _Held(party)
        except OSError:
            party.failed += 1
            return
        party.opened += 1
        party.held += 1
        if party.manners.bit_by_bit:
            self._due[held] = time.monotonic() + self._beat
        self._selector.register(held.sock, selectors.EVENT_READ, held)

    def _read(self, held: _Held) -> None:
        data = held.read()
        if data:
            held.party.answers.add(data[:12])
        if data != b"":
            return
        held.party.closed += 1
        held.party.held -= 1
        self._due.pop(held, None)
        self._selector.unregister(held.sock)
        held.sock.close()
