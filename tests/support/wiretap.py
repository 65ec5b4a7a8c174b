"""Somebody on the way between two sides: keeps what they say, and alters it where told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.deployment import PATIENCE


@dataclass
class Conversation:
    """One connection: all that each side has said so far."""

    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)


Alter = Callable[[Conversation, bool, bytes], bytes]
"""What becomes of bytes; the flag says whether they are an answer."""


@dataclass
class Wiretap:
    port: int
    conversations: list[Conversation] = field(default_factory=list)


@contextmanager
def listen_in(
    port: int, alter: Alter = lambda _conversation, _is_answer, data: data
) -> Iterator[Wiretap]:
    """Pass on to ``port`` what comes to the wiretap's own."""

    def forward(
        source: socket.socket, target: socket.socket, conversation: Conversation, is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                (conversation.answered if is_answer else conversation.asked).extend(data)
                target.sendall(alter(conversation, is_answer, data))
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port), PATIENCE)
                tap.conversations.append(conversation := Conversation())
                for source, target, is_answer in ((near, far, False), (far, near, True)):
                    arguments = (source, target, conversation, is_answer)
                    threads.append(threading.Thread(target=forward, args=arguments))
                    threads[-1].start()
                sockets.extend((near, far))

    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tap = Wiretap(listener.getsockname()[1])
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield tap
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(PATIENCE)
            for sock in sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(PATIENCE)
            for sock in sockets:
                sock.close()
