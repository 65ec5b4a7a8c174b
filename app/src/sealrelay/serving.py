"""Runs a service's application under gunicorn: gevent workers, mutual TLS, logs for the journal."""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
from gevent.ssl import SSLSocket
from greenlet import greenlet
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker

from sealrelay import metrics, quick
from sealrelay.config import CoordinatorSettings, ServerSettings, ServiceSettings
from sealrelay.errors import SealrelayError
from sealrelay.identity import Endpoint
from sealrelay.processes import forget_process
from sealrelay.store import StoreError
from sealrelay.tls import describe_tls_error, make_server_context

_log = logging.getLogger("sealrelay.tls")

_HANDSHAKE_DEADLINE = 5.0
_KEEP_ALIVE = 75
_CONNECTIONS = 10_000
"""Connections to one worker; as many messages may wait in a coordinator's."""
_IDLE = 0.5
"""Seconds without a request after which a stopping worker closes a connection. One that was just
opened, or is in the middle of a request's head, gets its answer."""
_GRACE = 15
"""Seconds for requests under way when a server stops."""


def serve(settings: ServiceSettings, started: float) -> None:
    """Run the service until it is told to stop (SIGTERM). Exits the process.

    ``started``: when this began, in seconds since the epoch.
    """
    configure_logging(settings.log_level)
    _Service(settings, started).run()


def configure_logging(level: str) -> None:
    """Log to standard error: with priorities for the journal, else with time and level."""
    journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JournalFormatter("%(message)s")
        if journal
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    # Facts about each line that no line here shows, and that take time to find out: the Logging
    # HOWTO of the Python documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _JournalFormatter(logging.Formatter):
    """Marks each line with its syslog priority (sd-daemon(3)); the journal adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        priority = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3}.get(record.levelname, 2)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class _Service(BaseApplication):
    """gunicorn, told by our settings what to do, and by nothing else."""

    def __init__(self, settings: ServiceSettings, started: float) -> None:
        self.settings = settings
        self._started = started
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        options: dict[str, object] = {
            "bind": settings.bind,
            "workers": settings.workers,
            "worker_class": "sealrelay.serving.RelayWorker",
            "logger_class": _PropagatingLogger,
            "certfile": settings.tls.cert,  # what makes gunicorn speak TLS; the hook does the rest
            "keyfile": settings.tls.key,
            "ssl_context": self._make_handshaker,
            "keepalive": _KEEP_ALIVE,
            "worker_connections": _CONNECTIONS,
            "graceful_timeout": _grace(settings),
            "timeout": 30,
            "control_socket_disable": True,
            "worker_exit": lambda _arbiter, _worker: metrics.publish(),
            "child_exit": lambda _arbiter, worker: forget_process(worker.pid),
            "limit_request_line": 1024,
            "limit_request_fields": 50,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., Any]:
        # Imported here, in the worker, after gevent has patched what these modules import.
        try:
            if isinstance(self.settings, ServerSettings):
                from sealrelay import server

                return server.create_app(self.settings, self._started)
            from sealrelay import coordinator

            return coordinator.create_app(self.settings, self._started)
        except (SealrelayError, StoreError) as error:
            logging.getLogger("sealrelay").error("%s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None

    def _make_handshaker(self, _conf: Config, _default: object) -> _DeferredHandshake:
        return _DeferredHandshake(make_server_context(self.settings.tls))


class RelayWorker(GeventWorker):
    """gunicorn's gevent worker, which lets go of idle connections at once when it stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: dict[greenlet, tuple[gevent.Timeout, float]] = {}
        self._handshakes = 0
        service: Any = self.app
        self._message_paths = frozenset(
            path
            for service_role, method, path in (endpoint.value for endpoint in Endpoint)
            if service_role is service.settings.role and method == "POST"
        )
        self._admitted = 0

    def init_process(self) -> None:
        metrics.refresh_with(self._publish_connections)  # in the worker's own process
        super().init_process()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        self._handshakes += 1
        try:
            good = _shake_hands(client, addr[0])
        finally:
            self._handshakes -= 1
        if not good:
            client.close()
            return
        self._admitted += 1
        try:
            self._serve(client, addr)
        finally:
            self._admitted -= 1

    def _serve(self, client: _Connection, addr: Any) -> None:
        def await_request() -> bytes:
            with self.timeout_ctx():
                return client.recv(65536)
            return b""  # it was ended from outside

        rest = None
        with suppress(OSError):  # the peer has left
            rest = quick.serve(
                client, await_request, self.wsgi, self._message_paths, lambda: not self.alive
            )
        if rest is None:
            client.close()
            return
        client.unread(rest)
        # A stopping worker has closed the listener by now, which is only asked for its address; the
        # connection knows it too.
        super().handle(client, client, addr)

    def _publish_connections(self) -> None:
        metrics.CONNECTIONS.labels("handshake").set(self._handshakes)
        metrics.CONNECTIONS.labels("idle").set(len(self._idle))
        metrics.CONNECTIONS.labels("busy").set(self._admitted - len(self._idle))

    @contextmanager
    def timeout_ctx(self) -> Iterator[None]:  # type: ignore[override] # gunicorn's hints lack it
        """Around the wait for the next request of a kept-alive connection."""
        connection = gevent.getcurrent()
        timer = gevent.Timeout.start_new(self.cfg.keepalive)
        self._idle[connection] = (timer, time.monotonic())
        try:
            yield
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
        finally:
            del self._idle[connection]
            timer.close()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        gevent.spawn(self._close_idle_connections)

    def _close_idle_connections(self) -> None:
        while True:  # ends with the process
            for connection in list(self._idle):
                gevent.get_hub().loop.run_callback(self._close_if_idle, connection)
            gevent.sleep(0.1)

    def _close_if_idle(self, connection: greenlet) -> None:
        # Runs in the hub, so the connection's greenlet is waiting; where it waits for its next
        # request, it takes the timer as its own. Anywhere else it would break a request.
        timer, since = self._idle.get(connection, (None, 0.0))
        if timer is not None and time.monotonic() - since > _IDLE:
            connection.throw(timer)


class _Connection(SSLSocket):
    """An accepted connection, which takes back what was read of a request."""

    _unread = b""

    def unread(self, data: bytes) -> None:
        self._unread = data

    def recv(self, *args: Any) -> bytes:
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        received: bytes = super().recv(*args)
        return received


class _DeferredHandshake:
    """Stands where gunicorn and gevent expect an SSL context: wraps now, leaves the handshake to
    ``RelayWorker.handle``, which can bound it and answer for it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        context.sslsocket_class = _Connection

    def wrap_socket(self, sock: socket.socket, **_options: Any) -> ssl.SSLSocket:
        try:
            return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:  # the peer has left already, and nobody is there to be told
            raise gevent.GreenletExit from None


def _shake_hands(client: ssl.SSLSocket, peer: str) -> bool:
    """Do the handshake with an accepted peer, in bounded time. Whether it belongs here."""
    try:
        with gevent.Timeout(_HANDSHAKE_DEADLINE, TimeoutError("handshake not done in time")):
            client.do_handshake()
    except TimeoutError as error:
        metrics.REFUSED_CONNECTIONS.add("too-slow")
        _log.info("Refused %s: %s", peer, error.strerror or error)
        return False
    except ssl.SSLError as error:
        metrics.REFUSED_CONNECTIONS.add("tls")
        _log.info("Refused %s: %s", peer, describe_tls_error(error))
        _let_read_alert(client)
        return False
    except OSError as error:
        metrics.REFUSED_CONNECTIONS.add("lost")
        _log.info("Refused %s: %s", peer, error.strerror or error)
        return False
    return True


def _let_read_alert(client: ssl.SSLSocket) -> None:
    """Let a refused peer read why: closing with unread data would reset the connection."""
    try:
        client.shutdown(socket.SHUT_WR)
        with gevent.Timeout(1.0, TimeoutError()):
            while client.recv(4096):
                pass
    except OSError:
        pass


def _grace(settings: ServiceSettings) -> int:
    """Seconds for requests under way when a service stops: a coordinator's have a deadline."""
    return math.ceil(settings.deadline) + 5 if isinstance(settings, CoordinatorSettings) else _GRACE


class _PropagatingLogger(Logger):
    """gunicorn's own lines go the way of ours; its access log is off, ``web`` has a better one."""

    def setup(self, cfg: Config) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.getLogger().level)
        self.access_log.disabled = True
