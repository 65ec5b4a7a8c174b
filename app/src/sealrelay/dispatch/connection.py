"""One connection to one server: TLS, a batch out, the outcomes back."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import gevent
import msgspec

from sealrelay.config import ServerAddress, split_url
from sealrelay.credentials import Credentials
from sealrelay.dispatch.decisions import Message
from sealrelay.identity import Identity, IdentityRefused, LeafRefused, identify_certificate
from sealrelay.tls import describe_tls_error, peer_certificate, send_close_notify
from sealrelay.trust import Leaf, read_leaf
from sealrelay.wire import (
    BatchAnswer,
    BatchMessage,
    BatchRequest,
    HealthAnswer,
    Outcome,
    read_reason,
)

T = TypeVar("T")

_HEAD = re.compile(
    rb"HTTP/1\.1 (?P<status>[1-5][0-9]{2}) [\x20-\x7e]*\r\n"
    rb"(?P<fields>(?:[A-Za-z0-9-]+:[\x20-\x7e]*\r\n){0,40})"
    rb"\r\n"
)
_LENGTH = re.compile(rb"^content-length: *([0-9]{1,9}) *\r$", re.IGNORECASE | re.MULTILINE)
_CLOSES = re.compile(rb"^connection: *close *\r$", re.IGNORECASE | re.MULTILINE)
_LARGEST_HEAD = 16384


class ServerFailed(Exception):
    """The server did not answer as a server does; the text says how, in one phrase.

    ``timed_out``: it may still be at work on what it was sent.
    """

    def __init__(self, how: str, *, timed_out: bool = False) -> None:
        super().__init__(how)
        self.timed_out = timed_out


class BatchRefused(Exception):
    """The server works, but does not take this batch as it is; ``status`` is its HTTP answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.status = status


class _StaleConnection(Exception):
    """A kept-alive connection that the server had closed meanwhile."""


class _NotUnderstood(Exception):
    """An answer that is none of a server of ours."""


class ServerConnection:
    """A kept-alive mutual TLS connection to one server, opened when first needed.

    Not to be used by two greenlets at once.
    """

    def __init__(
        self, address: ServerAddress, identity: Identity, credentials: Credentials
    ) -> None:
        self._host, self._port = split_url(address.url)
        self._authority = urlsplit(address.url).netloc
        self._identity = identity
        self._credentials = credentials
        self._sock: ssl.SSLSocket | None = None
        self._leaf: Leaf | None = None
        """The server's."""
        self._shown = self._found_good = 0
        """The credentials' leaf with which this was connected, and their generation when the
        server's leaf was judged last."""
        self._is_busy = False

    def send_batch(self, batch: Sequence[Message], timeout: float) -> list[Outcome]:
        """Have a batch stored; an outcome for each message, in their order.

        ``timeout``: seconds for all of it. Raises ServerFailed; then any part of the batch may have
        been stored, and to send it again is safe, because a message id is stored once. Raises
        BatchRefused; then nothing was stored, and to send the same batch again is no use.
        """
        body = msgspec.json.encode(
            BatchRequest([BatchMessage(message.client, message.token) for message in batch])
        )
        status, answer = self._exchange("POST", "/api/batch", body, BatchAnswer, timeout)
        if answer is None:
            raise BatchRefused(status)
        if len(answer.outcomes) != len(batch):
            raise ServerFailed("answered for another number of messages")
        return answer.outcomes

    def probe(self, timeout: float) -> HealthAnswer:
        """Ask for the server's health; ``timeout`` in seconds. Raises ServerFailed."""
        status, answer = self._exchange("GET", "/healthz", b"", HealthAnswer, timeout)
        if answer is None:
            raise ServerFailed(f"answered {status} to /healthz")
        return answer

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._sock is not None:
            send_close_notify(self._sock)
            self._sock.close()
            self._sock = None

    def renew(self) -> None:
        """What the connection rests on has changed: where it bears it no more, the next request
        connects anew."""
        if not self._is_busy and self._sock is not None and not self._is_good():
            self.close()

    def _is_good(self) -> bool:
        """Whether we show the server the leaf that it was shown, and its own still counts."""
        if self._shown != self._credentials.shown or self._leaf is None:
            return False
        if self._found_good != self._credentials.generation:
            try:
                self._credentials.check(self._leaf)
            except LeafRefused:
                return False
            self._found_good = self._credentials.generation
        return time.time() < self._leaf.ends

    def _exchange(
        self, method: str, path: str, body: bytes, kind: type[T], timeout: float
    ) -> tuple[int, T | None]:
        """The answer's status and content; no content where the request itself is refused."""
        expired = gevent.Timeout(timeout)
        self._is_busy = True
        try:
            with expired:
                try:
                    status, payload = self._request(method, path, body)
                except _StaleConnection:
                    status, payload = self._request(method, path, body)
            if status in (400, 411, 413, 415):
                return status, None
            if status != 200:
                raise ServerFailed(f"answered {status} to {path}{read_reason(payload)}")
            return status, msgspec.json.decode(payload, type=kind)
        except gevent.Timeout as timer:
            if timer is not expired:
                raise
            self.close()
            raise ServerFailed(f"no answer within {timeout:.1f} s", timed_out=True) from None
        except ssl.SSLError as error:
            self.close()
            raise ServerFailed(describe_tls_error(error)) from None
        except IdentityRefused as error:
            self.close()
            raise ServerFailed(str(error)) from None
        except OSError as error:
            self.close()
            raise ServerFailed(error.strerror or str(error) or type(error).__name__) from None
        except (_NotUnderstood, msgspec.MsgspecError):
            self.close()
            raise ServerFailed(f"answered {path} in an unknown form") from None
        finally:
            self._is_busy = False
            self.renew()

    def _request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if self._sock is not None and not self._is_good():
            self.close()
        reused = self._sock is not None
        sock = self._sock or self._connect()
        head = (
            f"{method} {path} HTTP/1.1\r\n"
            f"Host: {self._authority}\r\n"
            f"Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            # In one piece: http.client's own requests send two, and the server wakes up for each.
            sock.sendall(head.encode("ascii") + body)
            status, payload, closes = _read_answer(sock)
        except (ConnectionError, ssl.SSLEOFError):
            self.close()
            if reused:
                raise _StaleConnection from None
            raise
        if closes:
            self.close()
        return status, payload

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._host, self._port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._leaf, self._shown = None, self._credentials.shown
        self._found_good = self._credentials.generation
        self._sock = sock = self._credentials.client_context.wrap_socket(
            plain, server_hostname=self._host, do_handshake_on_connect=False
        )
        sock.do_handshake()  # where it fails or takes too long, ``_exchange`` closes the connection
        der = peer_certificate(sock)
        leaf = read_leaf(der)
        self._credentials.check(leaf)
        identity = identify_certificate(der)
        if identity != self._identity:
            raise IdentityRefused(f"it is {identity}, not {self._identity}")
        self._leaf = leaf
        return sock


def _read_answer(sock: ssl.SSLSocket) -> tuple[int, bytes, bool]:
    """The status and content of one answer, and whether it is the connection's last.

    A server of ours says how long its content is (RFC 9112 §6.2), and says nothing else before or
    after. Raises _NotUnderstood, ConnectionError or ssl.SSLError.
    """
    arrived = b""
    while (end := arrived.find(b"\r\n\r\n")) < 0:
        if len(arrived) > _LARGEST_HEAD:
            raise _NotUnderstood
        arrived += _receive(sock)
    head = _HEAD.fullmatch(arrived, 0, end + 4)
    lengths = _LENGTH.findall(head["fields"]) if head is not None else []
    if head is None or len(lengths) != 1:
        raise _NotUnderstood
    chunks = [arrived[head.end() :]]
    left = int(lengths[0]) - len(chunks[0])
    while left > 0:
        chunks.append(_receive(sock))
        left -= len(chunks[-1])
    if left < 0:
        raise _NotUnderstood
    return int(head["status"]), b"".join(chunks), _CLOSES.search(head["fields"]) is not None


def _receive(sock: ssl.SSLSocket) -> bytes:
    chunk = sock.recv(65536)
    if not chunk:
        raise ConnectionResetError("closed the connection without an answer")
    return chunk
