"""What a service shows its peers and whom it believes, kept as the newest good files say."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import gevent

from sealrelay import metrics
from sealrelay.config import ServiceSettings, load_tls
from sealrelay.reload import LOOK_EVERY, Reloadable, fingerprint
from sealrelay.tls import TlsSet
from sealrelay.trust import Leaf, Trust
from sealrelay.wire import Expiries

_log = logging.getLogger("sealrelay.credentials")

_REMIND = 3600.0
"""Seconds between two lines about a CRL that has run out."""

T = TypeVar("T")


class Credentials:
    """What a service shows its peers, and whom it believes: always as the newest good files say.

    One for a process. ``generation`` is another one whenever what is said here may be, ``shown``
    whenever peers are shown another leaf.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        """Raises TlsRefused."""
        self._settings = settings
        self._files: Reloadable[TlsSet] | None = None
        self._others: list[Reloadable[Any]] = []
        self._files = self._reload("TLS files", settings.tls.listed, self._read)
        self._listeners: list[Callable[[], None]] = []
        self._remind_at = -math.inf
        self.generation = self.shown = 0
        self.tls = self._files.value
        self._use(self.tls)

    def add(
        self, what: str, list_files: Callable[[], Iterable[Path]], read: Callable[[], T]
    ) -> Reloadable[T]:
        """Look at these files as well; they are what ``Reloadable`` takes. Raises as it does."""
        files = self._reload(what, list_files, read)
        self._others.append(files)
        return files

    @property
    def fingerprint(self) -> str:
        """Of all files in use; see ``reload.fingerprint``."""
        assert self._files is not None
        stamps = dict(self._files.in_use)
        for files in self._others:
            stamps |= files.in_use
        return fingerprint(stamps)

    @property
    def expiries(self) -> Expiries:
        """When what is in use runs out."""
        trust = self.tls.trust
        return Expiries(self.tls.expires, trust.expires, trust.next_update)

    def when_changed(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after each change of ``generation``."""
        self._listeners.append(listener)

    def keep_looking(self) -> None:
        """Look at the files again and again; never returns."""
        while True:
            gevent.sleep(LOOK_EVERY)
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

    def _reload(
        self, what: str, list_files: Callable[[], Iterable[Path]], read: Callable[[], T]
    ) -> Reloadable[T]:
        for result in ("ok", "refused"):
            metrics.RELOADS.add(what, result, amount=0)
        return Reloadable(what, list_files, read, lambda result: metrics.RELOADS.add(what, result))

    def _read(self) -> TlsSet:
        if self._files is None:
            return load_tls(self._settings)
        # Messages don't wait for it: it takes as long as several of them.
        read = gevent.get_hub().threadpool.apply(self._read_again)
        if isinstance(read, Exception):
            raise read
        return read

    def _read_again(self) -> TlsSet | Exception:
        # An error that leaves a thread of the pool would be printed there.
        try:
            tls = load_tls(self._settings)
            # Not at start: nothing better is in use, and what is not valid yet may be so soon.
            tls.rehearse()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            return error
        return tls

    def _use(self, tls: TlsSet) -> None:
        hour = _read_clock(tls.trust, time.time())
        server_context, client_context = tls.make_server_context(), tls.make_client_context()
        self.shown += not tls.shows_the_same(self.tls)
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
