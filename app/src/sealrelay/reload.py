"""Files that are read again when they have changed, each set of them as one.

A set is looked at again and again. It is taken when two looks agree, so that nobody is in the
middle of writing it, and only if all in it fits together; else the one in use stays in use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from sealrelay.errors import ConfigError
from sealrelay.tls import TlsRefused

_log = logging.getLogger("sealrelay.reload")

LOOK_EVERY = 0.25
"""Seconds between two looks, for who has nothing else to go by."""
_TRY_AGAIN = 5.0
"""Seconds after which refused files are read again: a leaf may have become valid meanwhile."""

T = TypeVar("T")
Stamps = Mapping[Path, tuple[int, ...] | None]
"""What tells one version of each file from another; None where there is no file."""


class Reloadable(Generic[T]):
    """A set of files, and the value that was last made of them."""

    def __init__(
        self,
        what: str,
        list_files: Callable[[], Iterable[Path]],
        read: Callable[[], T],
        on_change: Callable[[str], object] = lambda result: None,
    ) -> None:
        """``what`` it is, for the log. ``read`` makes the value, now as well.

        ``on_change`` hears what became of each later change: ``ok`` or ``refused``. The two before
        it may raise OSError, and ``read`` ConfigError or TlsRefused, which name the file; what
        they raise now is raised here.
        """
        self._what, self._list_files, self._read = what, list_files, read
        self._on_change = on_change
        self._in_use = self._seen = self._stamp()
        self._refused: Stamps | None = None
        self._refusal = ""
        self._try_again = 0.0
        self.value = read()
        """Of the files as they were when it was made; never of some old and some new ones."""

    @property
    def in_use(self) -> Stamps:
        """The files that ``value`` was made of."""
        return self._in_use

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
        self._on_change("ok")
        _log.info("Reloaded the %s", self._what)
        return True

    def _refuse(self, stamps: Stamps, refusal: str) -> None:
        if (stamps, refusal) != (self._refused, self._refusal):
            self._on_change("refused")
            _log.error("The %s in use stay in use, the new ones don't fit: %s", self._what, refusal)
        self._refused, self._refusal = stamps, refusal
        self._try_again = time.monotonic() + _TRY_AGAIN

    def _stamp(self) -> Stamps:
        try:
            return stamp_files(self._list_files())
        except OSError:
            return {}


def stamp_files(paths: Iterable[Path]) -> Stamps:
    """The stamps of files as they are now."""
    return {path: _stamp(path) for path in paths}


def fingerprint(stamps: Stamps) -> str:
    """One short text for all stamps: the same for the same files, in any process of the host."""
    listed = sorted((str(path), stamp) for path, stamp in stamps.items())
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a third of the time that a Path takes
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
