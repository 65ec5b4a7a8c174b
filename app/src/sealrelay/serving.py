"""Runs a service's application under gunicorn: gevent workers, mutual TLS, logs for the journal."""

from __future__ import annotations

import gc
import logging
import math
import os
import queue
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.systemd import sd_notify

from sealrelay import metrics
from sealrelay.config import CoordinatorSettings, ServerSettings, ServiceSettings
from sealrelay.credentials import Credentials
from sealrelay.door import KEEP_ALIVE
from sealrelay.errors import SealrelayError
from sealrelay.journal import configure_logging
from sealrelay.processes import forget_process
from sealrelay.tls import TlsRefused

_BACKLOG = 4096
"""Connections that may wait to be accepted; Linux grants no more by default."""
_GRACE = 15
"""Seconds for requests under way when a server stops."""
_WORKER_TIMEOUT = 30
"""Seconds without a sign of life of a worker after which gunicorn's master ends it."""
_NOBODY_LIVES = _WORKER_TIMEOUT + 15
"""Seconds without one of any worker after which the master gives none itself. Until then it may
still have them replaced, which takes less from the others than a restart of all."""


def serve(settings: ServiceSettings, started: float) -> None:
    """Run the service until it is told to stop (SIGTERM). Exits the process.

    ``started``: when this began, in seconds since the epoch.
    """
    configure_logging(settings.log_level)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _Service(settings, started).run()


class _Service(BaseApplication):
    """gunicorn, told by our settings what to do, and by nothing else."""

    def __init__(self, settings: ServiceSettings, started: float) -> None:
        self.settings = settings
        self._started = started
        self.credentials: Credentials | None = None
        self._refusals: tuple[type[Exception], ...] = (SealrelayError, TlsRefused)
        if isinstance(settings, ServerSettings):
            # Before gevent patches what it imports. A coordinator starts sooner without it.
            from sealrelay.store import StoreError

            self._refusals += (StoreError,)
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        options: dict[str, object] = {
            "bind": settings.bind,
            "workers": settings.workers,
            "worker_class": "sealrelay.worker.RelayWorker",
            "logger_class": _PropagatingLogger,
            "certfile": settings.tls.cert,  # what makes it https; the worker does the rest
            "keyfile": settings.tls.key,
            "keepalive": math.ceil(KEEP_ALIVE),
            "backlog": _BACKLOG,
            "graceful_timeout": _grace(settings),
            "timeout": _WORKER_TIMEOUT,
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
            credentials = self.credentials = Credentials(self.settings)
            if isinstance(self.settings, ServerSettings):
                from sealrelay import server

                return server.create_app(self.settings, self._started, credentials)
            from sealrelay import coordinator

            return coordinator.create_app(self.settings, self._started, credentials)
        except self._refusals as error:
            logging.getLogger("sealrelay").error("%s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None

    def run(self) -> None:
        _Master(self).run()


class _Master(Arbiter):
    """gunicorn's master, which does not sleep while others wait for it."""

    def start(self) -> None:
        # gunicorn would call itself ready before there is a worker; a worker that answers does it.
        address = os.environ.pop("NOTIFY_SOCKET", None)
        super().start()
        if address is not None:
            os.environ["NOTIFY_SOCKET"] = address

    def handle_winch(self) -> None:
        """A worker answers. systemd believes the master only, so that no other process can speak
        for the service; gunicorn itself has a use for this signal where it is a daemon."""
        assert self.log is not None
        sd_notify("READY=1", self.log)

    def murder_workers(self) -> None:
        """Called in each turn of the master's loop, which takes a second at most."""
        super().murder_workers()
        self._give_sign_of_life()

    def _give_sign_of_life(self) -> None:
        """Tell systemd's watchdog that the service lives (sd_watchdog_enabled(3), sd_notify(3)).

        It does while this process looks after its workers, and at least one of these has been seen
        alive: its event loop turns.
        """
        now = time.monotonic()
        signs = [worker.tmp.last_update() for worker in self.WORKERS.values()]
        if "WATCHDOG_USEC" in os.environ and any(now - sign < _NOBODY_LIVES for sign in signs):
            assert self.log is not None
            sd_notify("WATCHDOG=1", self.log)

    def spawn_worker(self) -> int:
        pid: int = super().spawn_worker()
        gc.enable()  # all that a worker is to have, and that stays, has been made
        return pid

    def stop(self, graceful: bool = True) -> None:
        """Stop the workers, and return when the last one has ended.

        gunicorn looks for that ten times a second; here their ends wake it up. It is left the ports
        to close, and whoever is not to be waited for.
        """
        if graceful:
            # No longer ours: who comes now is refused, or waits for the next one where systemd
            # keeps the port.
            while self.LISTENERS:
                self.LISTENERS.pop().close()
            self.kill_workers(signal.SIGTERM)
            self._wait_for_workers(time.monotonic() + self.cfg.graceful_timeout)
        super().stop(graceful=False)

    def _wait_for_workers(self, until: float) -> None:
        """Return when none is left, or when told not to wait (SIGINT, SIGQUIT). Kills who is left
        at ``until``."""
        self.reap_workers()
        while self.WORKERS:
            try:
                told = self.SIG_QUEUE.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.kill_workers(signal.SIGKILL)
                return
            if told in (signal.SIGINT, signal.SIGQUIT):
                return
            self.reap_workers()


def _grace(settings: ServiceSettings) -> int:
    """Seconds for requests under way when a service stops: a coordinator's have a deadline."""
    return math.ceil(settings.deadline) + 5 if isinstance(settings, CoordinatorSettings) else _GRACE


class _PropagatingLogger(Logger):
    """gunicorn's own lines go the way of ours; its access log is off, ``web`` has a better one."""

    def setup(self, cfg: Config) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.getLogger().level)
        self.access_log.disabled = True
