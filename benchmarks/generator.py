"""The load generator, a process of its own: ``python -m benchmarks.generator < SPEC``.

It shares the machine with what it measures, so all work that can be done before the clock starts
is: messages are sealed, requests rendered, connections opened. What is left for a message is one
send, one receive and two looks at the clock, on non-blocking sockets and one epoll.

Reads a LoadSpec (one line of JSON), prints "ready", waits for a line, prints when it began
(CLOCK_MONOTONIC), runs, and prints a LoadResult.
"""

from __future__ import annotations

import gc
import os
import re
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.spec import Answer, ClientFiles, LoadResult, LoadSpec
from sealrelay.seal import parse_keyring
from sealrelay.tls import TlsFiles, TlsSet

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_OPEN_DEADLINE = 60.0

now = time.monotonic


class Request:
    """A message ready to be sent: the bytes of a whole HTTP request."""

    __slots__ = ("data", "message_id")

    def __init__(self, data: bytes, message_id: str) -> None:
        self.data, self.message_id = data, message_id


class Connection:
    """One connection to the relay, and the message under way on it, if any."""

    __slots__ = ("_arrived", "_secure", "client", "due", "is_ready", "request", "sock")

    def __init__(self, client: int) -> None:
        self.client = client
        self.sock: socket.socket | None = None
        self._secure: ssl.SSLSocket
        self.request: Request | None = None
        self.due = 0.0
        self.is_ready = False
        """Whether the handshake is done."""
        self._arrived = b""

    def connect(self, port: int) -> int:
        """Begin to connect. Returns the file descriptor, which stays the same."""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", port))  # an error shows when the handshake begins
        return self.sock.fileno()

    def shake_hands(self, context: ssl.SSLContext) -> int:
        """Go on with the handshake. Returns the epoll event to wait for, 0 when it is done.

        Raises OSError.
        """
        if not isinstance(self.sock, ssl.SSLSocket):
            assert self.sock is not None
            if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "not connected")
            self.sock = self._secure = context.wrap_socket(
                self.sock, server_hostname="localhost", do_handshake_on_connect=False
            )
        try:
            self._secure.do_handshake()
        except ssl.SSLWantReadError:
            return select.EPOLLIN
        except ssl.SSLWantWriteError:
            return select.EPOLLOUT
        self.is_ready = True
        return 0

    def send(self) -> None:
        """Send the message. Raises OSError."""
        assert self.request is not None
        # a fresh or an answered connection has room for a request of this size
        self._secure.send(self.request.data)

    def receive(self) -> tuple[int, bool] | None:
        """The status of the answer when it is complete, and whether the connection stays open.

        Raises OSError when the connection ends before that.
        """
        while True:
            try:
                chunk = self._secure.recv(65536)
            except ssl.SSLWantReadError:
                return None
            if not chunk:
                raise ConnectionResetError
            self._arrived = arrived = self._arrived + chunk if self._arrived else chunk
            head = arrived.find(b"\r\n\r\n")
            if head < 0:
                continue
            length = _LENGTH.search(arrived, 0, head + 2)
            if length is not None:
                complete = len(arrived) >= head + 4 + int(length[1])
            else:
                chunked = _CHUNKED.search(arrived, 0, head + 2) is not None
                complete = chunked and arrived.endswith(b"0\r\n\r\n")
            if complete:
                self._arrived = b""
                closes = _CLOSES.search(arrived, 0, head + 2) is not None
                return int(arrived[9:12]), not closes


class Generator:
    """Sends messages and notes what becomes of each."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._contexts = [_context(client.folder) for client in spec.clients]
        self._requests = [_render(spec, client) for client in spec.clients]
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._under_way = 0
        self._answers: list[Answer] = []
        self._reconnects = 0
        self._made = 0
        self._began = 0.0
        self._on_answer: Callable[[Connection], None] = self._idle.append

    def open_connections(self) -> None:
        """Open all connections and wait until their handshakes are done. Raises OSError."""
        for _ in range(self._spec.connections):
            self._open(self._new())
        deadline = now() + _OPEN_DEADLINE
        while len(self._idle) < self._spec.connections:
            if now() > deadline:
                raise TimeoutError("connections were not opened in time")
            self._serve(0.1)

    def run(self) -> LoadResult:
        cpu = time.process_time()
        self._began = now()
        _say(f"{self._began}")
        exhausted = self._run_open_loop() if self._spec.rate else self._run_closed_loop()
        self._drain()
        return LoadResult(
            answers=self._answers,
            reconnects=self._reconnects,
            exhausted=exhausted,
            cpu_seconds=time.process_time() - cpu,
        )

    def _run_closed_loop(self) -> bool:
        end = self._began + self._spec.seconds
        exhausted = False

        def send_next(connection: Connection) -> None:
            nonlocal exhausted
            requests = self._requests[connection.client]
            if not requests:
                exhausted = True
            elif (due := now()) < end:
                self._send(connection, requests.pop(), due)
                return
            self._idle.append(connection)

        self._on_answer = send_next
        first, self._idle = self._idle, deque()
        for connection in first:
            send_next(connection)
        while not exhausted and (left := end - now()) > 0:
            self._serve(left)
        return exhausted

    def _run_open_loop(self) -> bool:
        """Messages leave when they are due, whatever became of those before.

        Where no connection is idle, another is opened; time counts from when a message was due.
        """
        count = int(self._spec.seconds * self._spec.rate)
        for number in range(count):
            due = self._began + number / self._spec.rate
            while (left := due - now()) > 0:
                self._serve(left)
            connection = self._idle.popleft() if self._idle else self._new()
            self._send(connection, self._requests[connection.client].pop(), due)
        return False

    def _drain(self) -> None:
        self._on_answer = self._idle.append
        end = now() + self._spec.drain
        while self._under_way and (left := end - now()) > 0:
            self._serve(left)
        for connection in list(self._connections.values()):
            if connection.request is not None:
                self._note(connection, 0)
            self._close(connection)

    def _new(self) -> Connection:
        self._made += 1
        return Connection(self._made % len(self._contexts))

    def _open(self, connection: Connection) -> None:
        descriptor = connection.connect(self._spec.port)
        self._connections[descriptor] = connection
        self._epoll.register(descriptor, select.EPOLLOUT)

    def _close(self, connection: Connection) -> None:
        assert connection.sock is not None
        descriptor = connection.sock.fileno()
        self._epoll.unregister(descriptor)
        del self._connections[descriptor]
        connection.sock.close()

    def _serve(self, patience: float) -> None:
        for descriptor, _ in self._epoll.poll(patience):
            connection = self._connections.get(descriptor)
            if connection is not None:
                self._go_on(connection, descriptor)

    def _go_on(self, connection: Connection, descriptor: int) -> None:
        try:
            if not connection.is_ready:
                wanted = connection.shake_hands(self._contexts[connection.client])
                self._epoll.modify(descriptor, wanted or select.EPOLLIN)
                if wanted:
                    return
                if connection.request is None:
                    self._idle.append(connection)
                else:
                    connection.send()
                return
            answer = connection.receive()
        except OSError:
            self._replace(connection, 0)
            return
        if answer is not None:
            status, stays = answer
            if stays:
                self._note(connection, status)
                self._on_answer(connection)
            else:
                self._replace(connection, status)

    def _replace(self, connection: Connection, status: int) -> None:
        """The relay ended the connection; another is opened when there is something to send."""
        self._close(connection)
        self._reconnects += 1
        if connection.request is not None:
            self._note(connection, status)
            self._on_answer(Connection(connection.client))
        elif connection in self._idle:
            self._idle.remove(connection)
            self._idle.append(Connection(connection.client))

    def _send(self, connection: Connection, request: Request, due: float) -> None:
        connection.request = request
        connection.due = due
        self._under_way += 1
        if connection.sock is None:
            self._open(connection)
            return
        try:
            connection.send()
        except OSError:
            self._close(connection)
            self._note(connection, 0)
            self._idle.append(Connection(connection.client))

    def _note(self, connection: Connection, status: int) -> None:
        assert connection.request is not None
        due = connection.due
        self._answers.append(
            Answer(due - self._began, now() - due, status, connection.request.message_id)
        )
        connection.request = None
        self._under_way -= 1


def _context(folder: str) -> ssl.SSLContext:
    files = {name: str(Path(folder, f"{name}.pem")) for name in ("cert", "key", "ca")}
    return TlsSet(msgspec.convert(files, TlsFiles)).make_client_context()


def _render(spec: LoadSpec, client: ClientFiles) -> list[Request]:
    keyring = parse_keyring(client.keys.splitlines())
    head = (
        "POST /api/data HTTP/1.1\r\n"
        f"Host: localhost:{spec.port}\r\n"
        "Content-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n"
    ).encode()
    payload = b"x" * spec.payload_bytes
    requests = []
    for _ in range(-(-spec.messages // len(spec.clients))):
        token = keyring.seal(payload)
        body = msgspec.json.encode({"data": token.text})
        requests.append(Request(head % len(body) + body, token.message_id.hex()))
    return requests


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    # Clients are other machines elsewhere: here they must not interrupt whom they measure, at each
    # answer that wakes them, only because they share its processors (sched(7)).
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=LoadSpec)
    generator = Generator(spec)
    generator.open_connections()
    # Nothing here makes cycles, and a collection would be seen as latency.
    gc.collect()
    gc.disable()
    _say("ready")
    sys.stdin.buffer.readline()
    result = generator.run()
    _say(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
