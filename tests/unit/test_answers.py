"""How a lane reads what a server answers: strictly, whatever pieces it comes in."""

from __future__ import annotations

from typing import Any

import pytest

from sealrelay.dispatch.connection import _NotUnderstood, _read_answer

GOOD = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:  2 \r\n\r\n{}"


class Wire:
    """Brings what a server sent, ``size`` bytes at a time, then the end of the connection."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    def recv(self, _size: int) -> bytes:
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece


def read(data: bytes, size: int = 65536) -> tuple[int, bytes, bool]:
    wire: Any = Wire(data, size)
    return _read_answer(wire)


@pytest.mark.parametrize("size", [1, 2, 7, 65536])
def test_answer_is_read_in_whatever_pieces_it_comes(size: int) -> None:
    assert read(GOOD, size) == (200, b"{}", False)


def test_last_answer_of_a_connection_says_so() -> None:
    last = GOOD.replace(b"Server: x", b"Connection: Close")
    assert read(last) == (200, b"{}", True)


def test_answer_may_have_no_content() -> None:
    assert read(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") == (503, b"", False)


@pytest.mark.parametrize(
    "data",
    [
        GOOD.replace(b"content-length:  2 ", b"Content-Length: 2x"),
        GOOD.replace(b"content-length:  2 ", b"Transfer-Encoding: chunked"),
        GOOD.replace(b"content-length:  2 ", b"X-Content-Length: 2"),
        GOOD.replace(b"content-length:  2 ", b"Content-Length: -2"),
        GOOD.replace(b"Server: x", b"Content-Length: 2"),
        GOOD.replace(b"HTTP/1.1 200", b"HTTP/1.1 20"),
        GOOD.replace(b"HTTP/1.1", b"HTTP/2"),
        GOOD.replace(b"Server: x", b"Server : x"),
        GOOD.replace(b"Server: x\r\n", b"Server: x\n"),
        GOOD + b"H",
        b"\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_anything_else_is_none(data: bytes) -> None:
    with pytest.raises(_NotUnderstood):
        read(data, 40_000)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_answer_that_is_cut_off_is_a_lost_connection(length: int) -> None:
    with pytest.raises(ConnectionResetError):
        read(GOOD[:length])
