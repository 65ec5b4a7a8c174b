"""A client's TLS files and payload keys, for all connections that it has in one process."""

from __future__ import annotations

import logging
import ssl
import stat
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sealrelay.config import ClientSettings, load_keyring, load_tls
from sealrelay.reload import LOOK_EVERY, Reloadable, stamp_files
from sealrelay.tls import TlsSet, send_close_notify

_LOOKS = 4
"""Times to look at replaced files before giving up: two have to agree."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class DeadlineSocket(ssl.SSLSocket):
    """A TLS socket with a deadline for all that is read.

    A socket's timeout is for each piece: a byte now and then would hold its reader for ever.
    """

    deadline = 0.0
    """Seconds of the monotonic clock."""

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        """As of any socket. Raises TimeoutError from the deadline on."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*arguments, **options)

    def _real_close(self) -> None:
        # Python's own hook: ``close`` may come while an answer is still being read.
        send_close_notify(self)
        super()._real_close()  # type: ignore[misc] # the hints lack it


@dataclass(frozen=True, eq=False)
class ClientTls:
    """TLS files as they were at one time, and what connections are made with."""

    files: TlsSet
    context: ssl.SSLContext


class ClientFiles:
    """They are read once for all threads, and again when they have changed."""

    def __init__(self, settings: ClientSettings) -> None:
        """Read them. Raises ConfigError and TlsRefused."""
        keys = Path(settings.payload_keys)

        def read_tls() -> ClientTls:
            files = load_tls(settings)
            context = files.make_client_context()
            context.sslsocket_class = DeadlineSocket
            return ClientTls(files, context)

        self.tls = Reloadable("TLS files", settings.tls.listed, read_tls)
        self.keyring = Reloadable("payload keys", lambda: [keys], lambda: load_keyring(keys))
        self._looking = threading.Lock()
        self._looked_at = time.monotonic()
        _warn_of_readers((Path(settings.tls.key), keys))

    def look(self) -> None:
        """Look whether they have changed, unless that was done just now."""
        if time.monotonic() - self._looked_at < LOOK_EVERY or not self._looking.acquire(False):
            return
        try:
            self._looked_at = time.monotonic()
            self.keyring.look()
            self.tls.look()
        finally:
            self._looking.release()

    def catch_up(self, files: Reloadable[T], used: T) -> bool:
        """Whether ``files`` were replaced since ``used`` was read, and are in use now."""
        for _ in range(_LOOKS):
            self.look()
            if files.value is not used:
                return True
            if stamp_files(files.in_use) == files.in_use:
                return False
            time.sleep(LOOK_EVERY)
        return False


def _warn_of_readers(keys: Iterable[Path]) -> None:
    for path in keys:
        if path.stat().st_mode & stat.S_IROTH:
            _log.warning("every user of this machine can read %s: run chmod o= on it", path)
