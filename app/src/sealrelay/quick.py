"""A short way for requests that carry messages: read, hand to the application, answer.

gunicorn reads every request that HTTP allows, and makes a WSGI environment of some thirty entries
for each. What our clients and coordinators send has one plain shape, which one regular expression
knows. A request of any other shape, however slightly, is given back unread, and gunicorn serves the
connection from there on. So this may be narrow, and must never be wider than gunicorn: the tests
compare both.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import gevent

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_LARGEST_HEAD = 8192
"""Bytes. A longer head is gunicorn's to judge."""
_HEADS = 256
"""Heads that are known without reading them again: whoever sends again sends mostly the same."""

# No underscore in a field's name: in a WSGI environment it would pass for a hyphen.
_HEAD = re.compile(
    rb"POST (?P<path>/[a-z/]+) HTTP/1\.1\r\n"
    rb"(?P<fields>(?:[A-Za-z0-9-]+:[\x20-\x7e]*\r\n){1,40})"
    rb"\r\n"
)
_KEPT = {
    "CONTENT-LENGTH": "CONTENT_LENGTH",
    "CONTENT-TYPE": "CONTENT_TYPE",
    "CLIENT-CERT": "HTTP_CLIENT_CERT",
}
"""The fields that the endpoints look at, and their names in WSGI."""
_HARMLESS = {"USER-AGENT", "ACCEPT", "ACCEPT-ENCODING", "VIA", "X-FORWARDED-FOR"}
CLOSE = ("Connection", "close")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
# Host: an IPv6 address in brackets, or a name or IPv4 address; and perhaps a port
_HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?",
    re.ASCII,
)
BODY_DEADLINE = 20.0
"""Seconds for a body to arrive: who vanishes in the middle of one must not hold on to a place."""
_REST_LIMIT = 8 * 1024 * 1024
"""Bytes of a refused body that are read all the same, so that its sender gets to see the refusal:
closing with unread data resets the connection, and a reset can overtake the answer."""


Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""A WSGI application (PEP 3333)."""


class Stream(Protocol):
    """What is needed of a connection."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...


class Readable(Protocol):
    """The body of a request: ``read`` brings nothing at its end."""

    def read(self, size: int, /) -> bytes: ...


class Head:
    """The head of a request: its path, the fields that matter, and where its body begins."""

    __slots__ = ("fields", "length", "path", "size")

    def __init__(self, path: str, fields: dict[str, str], length: int, size: int) -> None:
        self.path, self.fields, self.length, self.size = path, fields, length, size


def read_head(data: bytes, paths: frozenset[str]) -> Head | None:
    """The head that ``data`` begins with, when it is plain and asks for one of these paths.

    RFC 9112 in its strictest form: POST, HTTP/1.1, CRLF, no field twice, a Content-Length, and
    nothing that changes how the message is framed or the connection kept.
    """
    end = data.find(b"\r\n\r\n", 0, _LARGEST_HEAD)
    head = _read_whole_head(data[: end + 4]) if end > 0 else None
    return head if head is not None and head.path in paths else None


@lru_cache(maxsize=_HEADS)
def _read_whole_head(data: bytes) -> Head | None:
    match = _HEAD.fullmatch(data)
    if match is None:
        return None
    kept: dict[str, str] = {}
    seen: set[str] = set()
    host = ""
    for line in match["fields"].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.upper(), value.strip(" ")
        if name in seen:
            return None
        seen.add(name)
        if name in _KEPT:
            kept[_KEPT[name]] = value
        elif name == "HOST":
            host = value
        elif name == "CONNECTION":
            if value.lower() != "keep-alive":
                return None
        elif name not in _HARMLESS:
            return None
    stated = kept.get("CONTENT_LENGTH", "")
    if not is_host(host) or not _LENGTH.fullmatch(stated):
        return None
    return Head(match["path"].decode("ascii"), kept, int(stated), len(data))


def is_host(value: str) -> bool:
    """Whether ``value`` is what a Host field may say (RFC 9110 §7.2, RFC 3986 §3.2.2).

    Not nothing: an https URI without a host is none (RFC 9110 §4.2.2).
    """
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            return False
    return True


class Body:
    """A request's body: what has come with its head, then what the connection brings."""

    def __init__(self, stream: Stream, arrived: bytes, length: int) -> None:
        self._stream, self._arrived = stream, arrived
        self.left = length
        """Bytes of the body that nobody has read."""

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end of the body or of the connection.

        Raises OSError.
        """
        size = min(size, self.left)
        if len(self._arrived) < size:
            arrived = bytearray(self._arrived)
            while len(arrived) < size and (chunk := self._stream.recv(65536)):
                arrived += chunk
            self._arrived = bytes(arrived)
        data, self._arrived = self._arrived[:size], self._arrived[size:]
        self.left -= len(data)
        return data

    @property
    def arrived(self) -> int:
        """Bytes that are there to be read without waiting for the peer."""
        return min(len(self._arrived), self.left)

    @property
    def beyond(self) -> bytes:
        """What has come after the body."""
        return self._arrived


def read_rest(body: Readable) -> bool:
    """Read what nobody has read of a request's body, within bounds; whether its end was found.

    Where it was not, the connection has to end with the answer: what comes next on it may be a part
    of the body.
    """
    left = _REST_LIMIT
    # gunicorn has an exception for each thing that can be wrong with a chunk
    with suppress(Exception), gevent.Timeout(BODY_DEADLINE, TimeoutError()):
        while left > 0:
            chunk = body.read(min(left, 65536))
            if not chunk:
                return True
            left -= len(chunk)
    return False


class _Dates:
    """The time of day for answers (RFC 9110 §6.6.1), made once a second."""

    def __init__(self) -> None:
        self._second, self._text = 0, ""

    def now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True)
        return self._text


_dates = _Dates()


def serve(
    stream: Stream,
    await_request: Callable[[], bytes],
    application: Application,
    paths: frozenset[str],
    stopping: Callable[[], bool],
) -> bytes | None:
    """Serve a connection's requests for as long as they are plain.

    ``await_request`` reads the beginning of the next one, or nothing when there is none to come;
    ``application`` is called with the few entries of an environment that the endpoints at ``paths``
    look at; once ``stopping``, the next answer is the last. Returns what was read of a request that
    is not plain, or None when the connection is over. Raises OSError.
    """
    data = b""
    while True:
        data = data or await_request()
        if not data:
            return None
        head = read_head(data, paths)
        if head is None:
            return data
        body = Body(stream, data[head.size :], head.length)
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": head.path,
            "gunicorn.socket": stream,
            "wsgi.input": body,
            **head.fields,
        }
        last = _answer(stream, application, environ, body, stopping())
        if last:
            return None
        data = body.beyond


def _answer(
    stream: Stream, application: Application, environ: WSGIEnvironment, body: Body, last: bool
) -> bool:
    """Have one request answered. Whether the answer says that it is the last.

    It is where the body's end was not found: the next request would be beyond that.
    """
    begun: list[Any] = []

    def start_response(
        status: str, fields: list[tuple[str, str]], _exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        begun[:] = status, fields
        return stream.sendall

    chunks: Iterable[bytes] = application(environ, start_response)
    status, fields = begun
    closes = CLOSE in fields
    if body.left and not closes:
        read_rest(body)
    last = last or body.left > 0
    lines = [f"{name}: {value}\r\n" for name, value in fields]
    if last and not closes:
        lines.append("Connection: close\r\n")
    head = f"HTTP/1.1 {status}\r\nDate: {_dates.now()}\r\n{''.join(lines)}\r\n"
    stream.sendall(b"".join([head.encode("latin-1"), *chunks]))
    return last or closes
