"""Log lines on standard error: with priorities for the journal, else with time and level.

A message leaves a line or two in each process that it passes. The standard library's handler
would take a lock, format a record and write to a pipe for every one of them, and wake the journal
for each; this one writes what one turn of the event loop has said in one go, so a message's line
may come after its answer. What is a warning or worse is written at once, with all that was said
before it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import lru_cache

import gevent
from gevent.monkey import get_original

_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3}
"""Of syslog, as sd-daemon(3) has them."""
_CRITICAL = 2

_root = logging.getLogger()
_thread_id = get_original("_thread", "get_ident")
"""The operating system's id of this thread; what gevent puts in its place is a greenlet's."""


def configure_logging(level: str) -> None:
    """Log to standard error, one line at a time until ``gather_lines`` is called."""
    logging.basicConfig(level=level.upper(), handlers=[LineHandler()], force=True)
    # Facts about each line that no line here shows, and that take time to find out: the Logging
    # HOWTO of the Python documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def gather_lines() -> None:
    """From now on, write the lines of one turn of this thread's event loop in one go."""
    for handler in _root.handlers:
        if isinstance(handler, LineHandler):
            handler.gather()


def note(log: logging.Logger, text: str) -> None:
    """``log.info(text)``, for the line that each message leaves; ``text`` is one line.

    Where nobody but a LineHandler hears of it, it takes a third of the time: a record of the
    standard library's tells much that no line here shows.
    """
    handlers = _root.handlers
    if len(handlers) == 1 and isinstance(handlers[0], LineHandler):
        if log.isEnabledFor(logging.INFO):
            handlers[0].add(text)
    else:
        log.info("%s", text)


class LineHandler(logging.Handler):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._for_journal = "JOURNAL_STREAM" in os.environ
        self._lines: list[str] = []
        self._thread: int | None = None

    def gather(self) -> None:
        """See ``gather_lines``."""
        self._thread = _thread_id()

    def handle(self, record: logging.LogRecord) -> bool:
        """Without filters and lock, of which there is no need: a line is written in one step."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's lines, or keep them for the end of this turn."""
        try:
            text = self._render(record)
        except Exception:  # noqa: BLE001 - as the standard library's handlers do
            self.handleError(record)
            return
        self._put(text, at_once=record.levelno >= logging.WARNING)

    def add(self, text: str) -> None:
        """The same of one line of the level INFO."""
        self._put(f"<6>{text}\n" if self._for_journal else _date_line(time.time(), "INFO", text))

    def _put(self, text: str, *, at_once: bool = False) -> None:
        if _thread_id() != self._thread:
            _write(text)
            return
        self._lines.append(text)
        if at_once:
            self.flush()
        elif len(self._lines) == 1:
            gevent.get_hub().loop.run_callback(self.flush)

    def flush(self) -> None:
        """Write what was kept."""
        lines, self._lines = self._lines, []
        if lines:
            _write("".join(lines))

    def _render(self, record: logging.LogRecord) -> str:
        if self._for_journal:
            priority = _PRIORITIES.get(record.levelname, _CRITICAL)
            return "".join(f"<{priority}>{line}\n" for line in self._text_of(record).splitlines())
        text = self._text_of(record)
        return _date_line(record.created, record.levelname, text)

    def _text_of(self, record: logging.LogRecord) -> str:
        # a formatter is slower, and only a traceback needs one
        return self.format(record) if record.exc_info else record.getMessage()


def _date_line(moment: float, level: str, text: str) -> str:
    return f"{_tell_time(int(moment))},{int(moment % 1 * 1000):03d} {level} {text}\n"


@lru_cache(maxsize=2)
def _tell_time(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
