"""Files that a running service reads again when they have changed, each set of them as one.

A set is looked at a few times a second. It is taken when two looks agree, so that nobody is in the
middle of writing it, and only if all in it fits together; else the one in use stays in use.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import gevent

from sealrelay import metrics
from sealrelay.config import ServiceSettings, own_identity
from sealrelay.errors import ConfigError
from sealrelay.tls import TlsRefused, TlsSet
from sealrelay.trust import Leaf, Trust

_log = logging.getLogger("sealrelay.reload")

_LOOK_EVERY = 0.25
"""Seconds between two looks."""
_TRY_AGAIN = 5.0
"""Seconds after which refused files are read again: a leaf may have become valid meanwhile."""
_REMIND = 3600.0
"""Seconds between two lines about a CRL that has run out."""

T = TypeVar("T")
_Stamps = dict[Path, tuple[int, ...] | None]


class Reloadable(Generic[T]):
    """A set of files, and the value that was last made of them."""

    def __init__(
        self, what: str, list_files: Callable[[], Iterable[Path]], read: Callable[[], T]
    ) -> None:
        """``what`` it is, for the log and the metrics. ``read`` makes the value, now as well.

        Both may raise OSError, and ``read`` ConfigError or TlsRefused, which name the file; what
        they raise now is raised here.
        """
        self._what, self._list_files, self._read = what, list_files, read
        self._in_use = self._seen = self._stamp()
        self._refused: _Stamps | None = None
        self._refusal = ""
        self._try_again = 0.0
        self.value = read()
        """Of the files as they were when it was made; never of some old and some new ones."""
        for result in ("ok", "refused"):
            metrics.RELOADS.add(what, result, amount=0)

    def look(self) -> bool:
        """Look at the files, and take them if they have changed. Whether ``value`` is new."""
        stamps = self._stamp()
        settled = stamps == self._seen
        self._seen = stamps
        if stamps == self._in_use:
            self._refused = None
            return False
        if not settled or (stamps == self._refused and time.monotonic() < self._try_again):
            return False
        value, refusal = None, ""
        try:
            value = self._read()
        except (ConfigError, TlsRefused, OSError) as error:
            refusal = str(error)
        if self._stamp() != stamps:
            return False  # somebody writes; there is another look soon
        if value is None:
            self._refuse(stamps, refusal)
            return False
        self.value, self._in_use, self._refused = value, stamps, None
        metrics.RELOADS.add(self._what, "ok")
        _log.info("Reloaded the %s", self._what)
        return True

    def _refuse(self, stamps: _Stamps, refusal: str) -> None:
        if (stamps, refusal) != (self._refused, self._refusal):
            metrics.RELOADS.add(self._what, "refused")
            _log.error("The %s in use stay in use, the new ones don't fit: %s", self._what, refusal)
        self._refused, self._refusal = stamps, refusal
        self._try_again = time.monotonic() + _TRY_AGAIN

    def _stamp(self) -> _Stamps:
        try:
            return {path: _stamp(path) for path in self._list_files()}
        except OSError:
            return {}


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a third of the time that a Path takes
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Credentials:
    """What a service shows its peers, and whom it believes: always as the newest good files say.

    One for a process. ``generation`` is another one whenever what is said here may be.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        """Raises TlsRefused."""
        paths = [Path(path) for path in settings.tls.paths.values()]
        self._settings = settings
        self._files: Reloadable[TlsSet] | None = None
        self._files = Reloadable("TLS files", lambda: paths, self._read)
        self._others: list[Reloadable[Any]] = []
        self._listeners: list[Callable[[], None]] = []
        self._remind_at = -math.inf
        self.generation = 0
        self._use(self._files.value)

    def add(self, files: Reloadable[Any]) -> None:
        """Look at these files as well."""
        self._others.append(files)

    def when_changed(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after each change of ``generation``."""
        self._listeners.append(listener)

    def keep_looking(self) -> None:
        """Look at the files again and again; never returns."""
        while True:
            gevent.sleep(_LOOK_EVERY)
            try:
                self.look()
            except Exception:  # noqa: BLE001 - a bug must not end the looking
                _log.exception("Unexpected error while looking at the files")

    def look(self) -> None:
        """Look at all files, and at the clock."""
        assert self._files is not None
        for files in self._others:
            files.look()
        now = time.time()
        if self._files.look() or _read_clock(self.tls.trust, now) != self._hour:
            self._use(self._files.value)
            for listener in self._listeners:
                listener()
        self._remind_of_crl(now)

    def check(self, leaf: Leaf) -> None:
        """Raises LeafRefused unless the leaf counts just now."""
        self.tls.trust.check(leaf, time.time())

    def _read(self) -> TlsSet:
        tls = TlsSet(self._settings.tls)
        if tls.identity != own_identity(self._settings):
            raise TlsRefused("cert", self._settings.tls.cert, f"the certificate is {tls.identity}")
        if self._files is not None:
            # At start nothing better is in use, and what is not valid yet may be so soon.
            tls.rehearse()
        return tls

    def _use(self, tls: TlsSet) -> None:
        hour = _read_clock(tls.trust, time.time())
        server_context, client_context = tls.make_server_context(), tls.make_client_context()
        self.tls, self._hour = tls, hour
        self.server_context, self.client_context = server_context, client_context
        self.generation += 1
        metrics.note_tls(tls)

    def _remind_of_crl(self, now: float) -> None:
        if not self.tls.trust.count_overdue(now):
            self._remind_at = -math.inf
        elif time.monotonic() >= self._remind_at:
            self._remind_at = time.monotonic() + _REMIND
            _log.error(
                "The CRL in %s has run out: %s; bring the next one",
                self._settings.tls.crl,
                "every peer of its CA is refused"
                if self._settings.tls.crl_expired == "refuse"
                else "what was revoked since is not known, the last known CRL goes on deciding",
            )


def _read_clock(trust: Trust, now: float) -> tuple[bool, int]:
    """What the time alone changes in the answers of ``trust``, leaves' own time aside."""
    return trust.lets_tls_check_crls(now), trust.count_overdue(now)
