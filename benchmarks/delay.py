"""A TCP proxy that can hold back what the server says: ``python -m benchmarks.delay``.

Arguments: the port to listen on, the server's port, and by how many seconds. It begins with
SIGUSR1 and ends with SIGUSR2; what was held back by then still comes when it is due.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time

import gevent
from gevent import socket
from gevent.queue import SimpleQueue
from gevent.server import StreamServer


class DelayingProxy:
    """Passes bytes on, both ways; those from the server later while ``delay`` (seconds) is set."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.delay = 0.0

    def handle(self, client: socket.socket, _address: object) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port))
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        workers: list[gevent.Greenlet[..., None]] = [
            gevent.spawn(self._forward, client, server),
            gevent.spawn(self._hold, server, held),
            gevent.spawn(self._release, held, client),
        ]
        gevent.joinall(workers)
        client.close()
        server.close()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _hold(self, server: socket.socket, held: SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = server.recv(65536)
            except OSError:
                data = b""
            held.put((time.monotonic() + self.delay, data))

    def _release(self, held: SimpleQueue[tuple[float, bytes]], client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = held.get()
                gevent.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    client.shutdown(socket.SHUT_WR)
                    return
                client.sendall(data)


def main() -> None:
    port, server_port, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    proxy = DelayingProxy(server_port)
    gevent.signal_handler(signal.SIGUSR1, setattr, proxy, "delay", delay)
    gevent.signal_handler(signal.SIGUSR2, setattr, proxy, "delay", 0.0)
    StreamServer(("127.0.0.1", port), proxy.handle, backlog=1024).serve_forever()


if __name__ == "__main__":
    main()
