"""gunicorn's gevent worker with a door: what strangers do costs members next to nothing.

An accepted connection waits for its first bytes, shakes hands within a deadline, and is a member
from then on. Strangers have places of their own, which they lose to whoever comes later; members
that have too many connections lose idle ones.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import takewhile
from types import FrameType
from typing import Any, TypeVar

import gevent
from gevent import events
from gevent.event import Event
from gevent.hub import Waiter
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import wait, wait_read
from gevent.ssl import SSLSocket
from greenlet import greenlet
from gunicorn.http.errors import InvalidHeader
from gunicorn.workers.ggevent import GeventWorker

from sealrelay import metrics, quick
from sealrelay.config import ServiceSettings
from sealrelay.credentials import Credentials
from sealrelay.door import (
    HANDSHAKE_DEADLINE,
    HEAD_DEADLINE,
    KEEP_ALIVE,
    LONGEST_HELLO,
    RECORD,
    Crowd,
    Line,
    RefusalLog,
    hello_size,
    name_stranger,
    share_places,
)
from sealrelay.errors import Unreachable
from sealrelay.identity import Endpoint, Identity, IdentityRefused, identify_certificate
from sealrelay.journal import gather_lines
from sealrelay.probe import probe_service
from sealrelay.tls import describe_tls_error, peer_certificate, send_close_notify
from sealrelay.trust import Leaf, read_leaf

_log = logging.getLogger("sealrelay.tls")

T = TypeVar("T")

_IDLE = 0.05
"""Seconds without a request after which a stopping worker closes a connection. One that was just
opened, or is in the middle of a request's head, gets its answer."""
_LOOK_EVERY = 0.25
"""Seconds between two looks at what members' connections wait for."""
_DRAIN = 0.02
"""The same of a stopping worker."""
_SHOW_OUT_EVERY = 0.01
"""Seconds between two looks at whose handshake takes too long, at least."""
_START_DEADLINE = 30.0
"""Seconds in which a service that starts has to answer."""
_NOTIFY_EVERY = 1.0
"""Seconds between two signs of life to gunicorn's master."""
_BURST = 16
"""Connections accepted in one go, before members' work and before any of them is counted."""
_STEPS = 3
"""Pieces in which a peer's answer in a handshake may come before those who begin one."""
_PATIENCE = 0.005
"""Seconds for which members' work goes before the next piece of what is done for others."""
_ENDS = 8
"""Connections that are ended in one such piece: each takes a good part of what a message takes."""
_LOOKS = 1_000
"""Connections that are looked at in one."""
_PIECES = 8
"""Pieces at most: where members' work never ends, what is done for others must not wait for it."""
_LAST_WORD = 1.0
"""Seconds for a peer to read the last that it is told, while it still sends."""
_SHORT_OF_BUFFERS = 0.1
"""Seconds before a hello is looked at again that the kernel did not count to its end."""
_ESTABLISHED = b"\x01"
"""The first byte of TCP_INFO (tcp(7)) while the peer may still send."""
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _Ended(BaseException):
    """Ends a wait from outside; the text says why."""


class _TooSlow(_Ended):
    """Ends a handshake at its deadline."""


class _NoLonger(_Ended):
    """Ends a wait because the peer's leaf does not count any more."""


class _Wait:
    """A connection's greenlet in a wait that may be ended: a handshake, or for a request."""

    def __init__(self) -> None:
        self.greenlet: greenlet = gevent.getcurrent()
        self.since = time.monotonic()
        self.over = False

    def end(self, end: _Ended) -> None:
        # Thrown from the hub, where the greenlet surely waits, and in this wait only: anywhere
        # else it would break a request.
        gevent.get_hub().loop.run_callback(self._throw, end)

    def _throw(self, end: _Ended) -> None:
        if not self.over:
            self.greenlet.throw(end)


class _Pause(enum.Enum):
    """What a member's connection waits for, while there is no request to be answered."""

    REQUEST = "a request"
    REST_OF_HEAD = "the rest of a request's head"


class _Connection(SSLSocket):
    """An accepted connection, which takes back what was read of a request, and knows what it waits
    for and since when."""

    _read_event: Any
    """gevent's, which its hints lack."""
    pause: _Pause | None = None
    paused_at = 0.0
    _pauses = 0
    _has_begun = False
    _unread = b""
    is_established = False
    """Whether the handshake is done, and the connection not closed since."""
    request: Any
    """gunicorn's, the last that it has read here."""
    credentials: Credentials
    _found_good = -1
    """The credentials' generation when the peer's leaf was judged last."""

    @property
    def identity(self) -> Identity:
        """Who is at the other end, once the handshake is done, and still counts.

        Raises IdentityRefused; it is LeafRefused where the leaf does not count.
        """
        if self._found_good != self.credentials.generation:
            self._judge()
        return self._identity

    @cached_property
    def _certificate(self) -> bytes:
        return peer_certificate(self)

    @cached_property
    def _leaf(self) -> Leaf:
        return read_leaf(self._certificate)

    @cached_property
    def _identity(self) -> Identity:
        return identify_certificate(self._certificate)

    @property
    def label(self) -> str:
        """Who is at the other end, for the log, whether that counts or not."""
        try:
            return self._identity.label
        except IdentityRefused:
            return "an unidentified peer"

    def find_refusal(self, now: float) -> str:
        """Why the peer's leaf does not count at ``now``, in seconds since the epoch, if so."""
        try:
            if self._found_good != self.credentials.generation or now > self._leaf.ends:
                self._found_good = -1
                self._judge()
        except IdentityRefused as refused:
            return str(refused)
        return ""

    def _judge(self) -> None:
        self.credentials.check(self._leaf)
        self._found_good = self.credentials.generation

    def unread(self, data: bytes) -> None:
        self._unread = data

    def recv(self, *args: Any) -> bytes:
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        if self.pause is not None:
            self._note_read()
            if not self.pending():
                # First of all, or TLS would look, find nothing, and raise it for nothing.
                wait(self._read_event)
        received: bytes = super().recv(*args)
        return received

    def sendall(self, data: Any, flags: int = 0) -> None:
        # mostly all goes out at once, and without the steps that parts take
        sent = self.send(data, flags)
        if sent < len(data):
            super().sendall(memoryview(data)[sent:], flags)

    def close(self) -> None:
        """Close the connection in stages (RFC 9112 §9.6), so that the last answer gets read."""
        if self.is_established:
            self.is_established = False
            send_close_notify(self)
            with contextlib.suppress(OSError):
                self.shutdown(socket.SHUT_WR)
                if super().recv(RECORD):  # raises if nothing has come
                    _await_end(self)
        super().close()

    def begin_pause(self) -> None:
        """There is no request to be answered; the next one is read from now on."""
        self.greenlet = gevent.getcurrent()
        self.pause, self.paused_at = _Pause.REQUEST, time.monotonic()
        self._pauses += 1
        self._has_begun = bool(self._unread)

    def end_pause(self) -> None:
        """The head of a request is there, or the connection is over."""
        self.pause = None

    def interrupt(self, end: _Ended) -> None:
        """End this pause by raising ``end`` in it."""
        # From the hub, where the greenlet surely waits, and in this pause only: anywhere else it
        # would break a request.
        gevent.get_hub().loop.run_callback(self._throw, self._pauses, end)

    def _throw(self, pauses: int, end: _Ended) -> None:
        if self.pause is not None and self._pauses == pauses:
            self._pauses += 1
            self.greenlet.throw(end)

    def _note_read(self) -> None:
        """Called before each read: when another was not enough, a request has begun."""
        if self._has_begun and self.pause is _Pause.REQUEST:
            self.pause, self.paused_at = _Pause.REST_OF_HEAD, time.monotonic()
        self._has_begun = True


class Turnstile:
    """Lets handshakes compute one at a time, and members' work go first before each.

    A handshake takes as long as a request does, and whoever asks for one needs no key for it.
    ``strangers``: all whose handshake is not done, by peer. ``patience``: seconds for which
    members' work goes first.
    """

    def __init__(self, strangers: Crowd[Any], patience: float = _PATIENCE) -> None:
        self._strangers = strangers
        self._patience = patience
        self._beginning: Line[Event] = Line()
        self._going_on: Line[Event] = Line()
        self._someone_waits = Event()

    def wait_for_turn(self, peer: str, *, goes_on: bool) -> None:
        """Returns when the caller may compute, until it next waits for anything.

        Who ``goes_on`` with a handshake comes before those who begin one: that takes an answer to
        ours, while first messages can be sent in a flood without any work.
        """
        turn = Event()
        waiting = self._going_on if goes_on else self._beginning
        waiting.add(peer, turn, self._strangers.count(peer))
        self._someone_waits.set()
        try:
            turn.wait()
        finally:
            waiting.discard(turn)

    def run(self) -> None:
        """Give turns; ends with the process."""
        while True:
            turn = self._going_on.take() or self._beginning.take()
            if turn is None:
                self._someone_waits.clear()
                self._someone_waits.wait()
            else:
                turn.set()
                _let_members_go_first(self._patience)


def _let_members_go_first(patience: float = _PATIENCE) -> None:
    # Not with a gevent.Timeout: each that fires leaves a cycle behind, with all that its callers
    # hold. To collect those of 20 s beside strangers took 0.1 s, for which every message waited.
    hub = gevent.get_hub()
    loop: Any = hub.loop  # whose hints lack that a watcher closes itself
    waiter: Waiter[None] = Waiter(hub)
    with loop.idle() as idle, loop.timer(patience) as timer:
        idle.start(waiter.switch, None)
        timer.start(waiter.switch, None, update=True)  # from now on, not from the loop's last look
        waiter.get()


def in_pieces(things: Sequence[T], least: int) -> Iterator[T]:
    """The same things; members' work goes first before each ``least`` of them but the first.

    Of many things it is more at a time, so that all are done within a few rounds of members' work.
    """
    size = max(least, -(-len(things) // _PIECES))
    for number, thing in enumerate(things):
        if number and number % size == 0:
            _let_members_go_first()
        yield thing


class RelayWorker(GeventWorker):
    """See the module. The gunicorn application's ``settings`` are the service's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Its birth is its first sign of life. The time that the file has is another clock's, and
        # one that never gets to its loop would count as alive for ever.
        self.tmp.notify()
        service: Any = self.app
        self._settings: ServiceSettings = service.settings
        self._message_paths = frozenset(
            path
            for service_role, method, path in (endpoint.value for endpoint in Endpoint)
            if service_role is self._settings.role and method == "POST"
        )
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._places = share_places(self._settings.max_connections, descriptors)
        # gevent stops accepting at this number; the door sees to it that it is never reached
        self.worker_connections = self._places.members + self._places.strangers + _BURST
        self._strangers: Crowd[_Wait] = Crowd()
        self._members: Crowd[_Connection] = Crowd()
        self._served: dict[greenlet, tuple[_Connection, str]] = {}
        self._refusals = RefusalLog(_log)
        self._turnstile = Turnstile(self._strangers)
        self._stopping = Event()

    def patch(self) -> None:
        # For each of some twenty steps gevent would read the metadata of every installed package,
        # in search of plugins: a good part of the time in which a service starts.
        hooks: Any = events  # whose hints lack both
        hooks.notify_and_call_entry_points = hooks.notify
        super().patch()

    def init_process(self) -> None:
        metrics.refresh_with(self._publish_connections)  # in the worker's own process
        super().init_process()

    def run(self) -> None:
        service: Any = self.app
        self._credentials: Credentials = service.credentials
        if self._places.members < self._settings.max_connections:
            _log.warning(
                "File descriptors suffice for %d connections, not for %d: raise LimitNOFILE",
                self._places.members,
                self._settings.max_connections,
            )
        StreamServer.max_accept = _BURST
        gather_lines()
        _spare_collections()
        gevent.spawn(self._credentials.keep_looking)
        gevent.spawn(self._turnstile.run)
        gevent.spawn(self._show_out_strangers)
        gevent.spawn(self._look_after_members)
        gevent.spawn(self._tell_ready)
        self._accept()

    def _tell_ready(self) -> None:
        """Have systemd told that the service has started, once it answers over mutual TLS.

        A program that asks from outside would take from the start the time that both need.
        """
        if "NOTIFY_SOCKET" not in os.environ:
            return
        try:
            probe_service(self._settings, _START_DEADLINE)
        except Unreachable as error:
            _log.error("Not started: %s", error)  # the unit's TimeoutStartSec= sees to the rest
        else:
            os.kill(self.ppid, signal.SIGWINCH)  # see the master's handle_winch

    def _accept(self) -> None:
        """gunicorn's ``run``, which looks once a second whether it is told to stop, or drained."""
        servers = []
        for listener in self.sockets:
            listener.setblocking(True)
            pool = Pool(self.worker_connections)
            server = StreamServer(listener, partial(self.handle, listener), spawn=pool)
            if self.cfg.workers > 1:
                server.max_accept = 1  # so that all workers get some
            server.start()
            servers.append(server)
        while self.alive:
            self.notify()
            self._stopping.wait(_NOTIFY_EVERY)
        for server in servers:
            server.close()
        until = time.monotonic() + self.cfg.graceful_timeout
        while any(server.pool for server in servers) and time.monotonic() < until:
            self.notify()
            gevent.sleep(_DRAIN)
        for server in servers:
            server.stop(timeout=1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        self._stopping.set()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        connection = self._receive(client, addr[0])
        if connection is None:
            return
        try:
            self._admit(connection, addr)
        finally:
            connection.close()

    def _admit(self, connection: _Connection, addr: Any) -> None:
        peer = _name_member(connection, addr[0])
        if not self._make_room_for_member(peer):
            self._refuse(addr[0], "crowded", f"no place for another connection of {peer}")
            return
        self._members.add(peer, connection)
        try:
            self._serve(connection, addr)
        finally:
            self._members.discard(connection)

    def _serve(self, connection: _Connection, addr: Any) -> None:
        def await_request() -> bytes:
            connection.begin_pause()
            try:
                return connection.recv(RECORD)  # all that a read can bring
            except _Ended as end:
                self._note_end(connection, addr[0], end)
                return b""
            finally:
                connection.end_pause()

        rest = None
        with contextlib.suppress(OSError):  # the peer has left
            rest = quick.serve(
                connection,
                await_request,
                self._application,
                self._message_paths,
                lambda: not self.alive,
            )
        if rest is not None:
            connection.unread(rest)
            current = gevent.getcurrent()
            self._served[current] = connection, addr[0]
            try:
                # A stopping worker has closed the listener by now, which is only asked for its
                # address; the connection knows it too.
                super().handle(connection, connection, addr)
            finally:
                del self._served[current]

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self._application = self.wsgi
        self.wsgi = self._answer

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        """gunicorn's; what it raises is answered with 400, and the connection closed."""
        hosts = [value for name, value in req.headers if name == "HOST"]
        # RFC 9112 §3.2: from HTTP/1.1 on there has to be one. gunicorn sees that there aren't two.
        if not all(map(quick.is_host, hosts)) or (not hosts and req.version >= (1, 1)):
            raise InvalidHeader("HOST", req=req)
        sock.request = req
        return super().handle_request(listener_name, req, sock, addr)

    def _answer(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """The application, as gunicorn calls it: before the answer, the body is read to its end.

        gunicorn would read what is left of it afterwards, and tell what is wrong with that in an
        answer of its own, as if it were to another request.
        """
        connection: _Connection = environ["gunicorn.socket"]

        def begin_answer(status: str, fields: Any, *error: Any) -> Any:
            if quick.CLOSE in fields or not quick.read_rest(environ["wsgi.input"]):
                connection.request.force_close()
            return start_response(status, fields, *error)

        return self._application(environ, begin_answer)

    def _publish_connections(self) -> None:
        metrics.CONNECTIONS.labels("handshake").set(len(self._strangers))
        idle = sum(connection.pause is _Pause.REQUEST for connection in self._members)
        metrics.CONNECTIONS.labels("idle").set(idle)
        metrics.CONNECTIONS.labels("busy").set(len(self._members) - idle)

    def _receive(self, client: Any, address: str) -> _Connection | None:
        """Do the handshake with an accepted peer. None, and all closed, if it doesn't belong."""
        name = name_stranger(address)
        self._make_room_for_stranger(name)
        wait = _Wait()
        self._strangers.add(name, wait)
        connection: _Connection | None = None
        try:
            # Before that there is no TLS state either. Who has spoken already is not waited for: of
            # several the event loop would tell the last one first.
            await_hello(client)
            self._turnstile.wait_for_turn(name, goes_on=False)
            connection = _Connection(
                client,
                server_side=True,
                do_handshake_on_connect=False,
                _context=self._credentials.server_context,
            )
            connection.credentials = self._credentials
            self._shake_hands(connection, name)
            return connection
        except ssl.SSLError as error:
            self._refuse(address, "tls", describe_tls_error(error))
            _await_end_of_refused(connection or client)
        except OSError as error:
            self._refuse(address, "lost", error.strerror or str(error))
        except _Ended as end:
            reason = "too-slow" if isinstance(end, _TooSlow) else "crowded"
            self._refuse(address, reason, str(end))
        finally:
            wait.over = True
            self._strangers.discard(wait)
        (connection or client).close()
        return None

    def _shake_hands(self, connection: _Connection, name: str) -> None:
        connection.settimeout(0.0)
        steps = 0
        while True:
            try:
                connection.do_handshake()
            except ssl.SSLWantReadError:
                # A cipher is chosen with our answer; before that, nothing has been done for it.
                steps += connection.cipher() is not None
                wait_read(connection.fileno())
                self._turnstile.wait_for_turn(name, goes_on=0 < steps <= _STEPS)
            else:
                connection.settimeout(None)
                connection.is_established = True
                return

    def _make_room_for_stranger(self, name: str) -> None:
        victim = None
        if self._strangers.count(name) >= self._settings.max_handshakes_per_peer:
            victim = self._strangers.oldest(name)
        elif len(self._strangers) >= self._places.strangers:
            victim = self._strangers.oldest_of_largest()
        if victim is not None:
            self._strangers.discard(victim)
            victim.end(_Ended("handshake not done when others came"))

    def _show_out_strangers(self) -> None:
        """End handshakes at their deadlines; ends with the process.

        Each at its own: those who are shown out together come back together.
        """
        while True:
            oldest = next(iter(self._strangers), None)
            since = time.monotonic() if oldest is None else oldest.since
            gevent.sleep(max(_SHOW_OUT_EVERY, since + HANDSHAKE_DEADLINE - time.monotonic()))
            for stranger in in_pieces(self._find_late(), _ENDS):
                self._strangers.discard(stranger)
                stranger.end(_TooSlow("handshake not done in time"))

    def _find_late(self) -> list[_Wait]:
        begun = time.monotonic() - HANDSHAKE_DEADLINE
        return list(takewhile(lambda stranger: stranger.since <= begun, self._strangers))

    def _make_room_for_member(self, peer: str) -> bool:
        if self._members.count(peer) >= self._settings.max_connections_per_peer:
            victim = _longest_idle(self._members.of(peer))
        elif len(self._members) >= self._places.members:
            largest = self._members.of_largest()
            victim = _longest_idle(largest) or _longest_idle(self._members)
        else:
            return True
        if victim is None:
            return False
        self._members.discard(victim)
        victim.interrupt(_Ended("idle, and its place was needed"))
        return True

    def _refuse(self, peer: str, reason: str, detail: str) -> None:
        metrics.REFUSED_CONNECTIONS.add(reason)
        self._refusals.note(peer, detail, time.monotonic())

    def _look_after_members(self) -> None:
        """End pauses that last too long, and sum up refusals; ends with the process."""
        while True:
            if self._stopping.wait(_LOOK_EVERY):
                gevent.sleep(_DRAIN)
            self._refusals.tick(time.monotonic())
            due = [
                connection
                for connection in in_pieces(list(self._members), _LOOKS)
                if self._find_end(connection)
            ]
            for connection in in_pieces(due, _ENDS):
                if end := self._find_end(connection):  # a request may have come meanwhile
                    connection.interrupt(end)

    def _find_end(self, connection: _Connection) -> _Ended | None:
        """What is to end this connection's pause now, if anything."""
        refusal = connection.find_refusal(time.time())
        pause = connection.pause
        if pause is None:  # its next request is refused
            return None
        if refusal:
            return _NoLonger(f"certificate of {connection.label}: {refusal}")
        if pause is _Pause.REST_OF_HEAD:
            limit = HEAD_DEADLINE
        else:
            limit = KEEP_ALIVE if self.alive else _IDLE
        if time.monotonic() - connection.paused_at > limit:
            return _Ended(f"waited for {pause.value}")
        return None

    @contextlib.contextmanager
    def timeout_ctx(self) -> Iterator[None]:  # type: ignore[override] # gunicorn's hints lack it
        """gunicorn's wait for the next request of a kept-alive connection."""
        connection, address = self._served[gevent.getcurrent()]
        connection.begin_pause()
        try:
            yield
        except _Ended as end:
            self._note_end(connection, address, end)
        finally:
            connection.end_pause()

    def _note_end(self, connection: _Connection, address: str, end: _Ended) -> None:
        slow = connection.pause is _Pause.REST_OF_HEAD
        connection.end_pause()  # what is said now is not to be interrupted
        if isinstance(end, _NoLonger):
            self._refuse(address, "no-longer", str(end))
        elif slow:
            self._refuse(address, "too-slow", "head of a request not there in time")
            _say_too_slow(connection)


def _spare_collections() -> None:
    """Let the collector of cycles leave alone what stays, and look at the rest less often.

    A message makes some dozens of objects and no cycle: to look for some after every 700 objects,
    the default, costs a tenth of all processor time. What the start left behind stays as well: to
    find it takes 20 ms, for which messages wait.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


def _longest_idle(connections: Iterable[_Connection]) -> _Connection | None:
    idle = (connection for connection in connections if connection.pause is _Pause.REQUEST)
    return min(idle, key=lambda connection: connection.paused_at, default=None)


def _name_member(connection: _Connection, address: str) -> str:
    """Whom a member's connection is counted to: its identity, wherever it comes from.

    A leaf of our CA without an identity gets its 403 later, like everyone who may not call.
    """
    try:
        return connection.identity.label
    except IdentityRefused:
        return f"unidentified peer at {address}"


def await_hello(client: Any) -> None:
    """Wait until a handshake can begin, or the peer says no more. Raises OSError.

    The kernel counts what comes (SO_RCVLOWAT, socket(7)): byte by byte, a record wakes nobody.
    Where it is short of memory for receive buffers, it wakes for any byte, so that is waited out.
    """
    said = client.recv(LONGEST_HELLO, socket.MSG_PEEK)
    while len(said) < (needed := hello_size(said)):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
        wait_read(client.fileno())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        said = client.recv(LONGEST_HELLO, socket.MSG_PEEK)
        if len(said) < needed:
            if error := client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            if client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != _ESTABLISHED:
                return
            gevent.sleep(_SHORT_OF_BUFFERS)


def _await_end_of_refused(client: Any) -> None:
    """Let a peer read TLS's alert."""
    with contextlib.suppress(OSError, _Ended):
        client.shutdown(socket.SHUT_WR)
        _await_end(client)


def _await_end(client: Any) -> None:
    """Wait until the peer has closed the connection too, but not for long. Raises OSError.

    So it reads what it was told last: closing with unread data would reset the connection.
    """
    client.settimeout(None)
    with gevent.Timeout(_LAST_WORD, TimeoutError()):
        while client.recv(RECORD):
            pass


def _say_too_slow(connection: _Connection) -> None:
    with contextlib.suppress(OSError), gevent.Timeout(1.0, TimeoutError()):
        connection.sendall(_TOO_SLOW)
