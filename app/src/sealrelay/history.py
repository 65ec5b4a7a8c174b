"""What a load sent and what became of it, as a file of JSON lines that outlives the load.

A message has a line before it is sent and another once its fate is known, so a load that is killed
leaves a history that is true: what has no second line may have been stored, or not. Jepsen's
histories are of this form (an ``invoke``, then ``ok``, ``fail`` or ``info``).
"""

from __future__ import annotations

import enum
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import msgspec

from sealrelay.errors import InputFileError

_TEXT = re.compile(rb"sealrelay load ([0-9a-f]{16}) ([1-9][0-9]{0,9}) *")


class Fate(enum.Enum):
    """What a client knows of a message in the end."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """It was told that the message will not be stored."""
    UNKNOWN = "unknown"
    """No answer, or one that says nothing for certain."""


class Run(msgspec.Struct, frozen=True, tag_field="event", tag="run", forbid_unknown_fields=True):
    """The first line: which load this was."""

    run: str
    """16 hexadecimal digits, in each of its messages."""
    began: float
    """Seconds since the epoch. All other times are seconds since then."""


class Sent(msgspec.Struct, frozen=True, tag_field="event", tag="sent", forbid_unknown_fields=True):
    """A message is about to be sent."""

    number: int
    """From 1, in the order in which messages were due."""
    client: str
    message_id: str
    """64 hexadecimal digits."""
    sealed_at: int
    """Seconds since the epoch."""
    due: float
    sent: float


class Answered(
    msgspec.Struct, frozen=True, tag_field="event", tag="answered", forbid_unknown_fields=True
):
    """The fate of a message is known."""

    number: int
    answered: float
    fate: Fate
    server: str = ""
    """Who stored it, as the acknowledgement says."""
    tries: int = 0
    detail: str = ""
    """Why it was not acknowledged."""


_Event = Run | Sent | Answered


@dataclass
class History:
    """A load's messages by their numbers."""

    run: Run
    sent: dict[int, Sent] = field(default_factory=dict)
    answered: dict[int, Answered] = field(default_factory=dict)

    def fate(self, number: int) -> Fate:
        """What became of a message that was sent, as far as its client knows."""
        answer = self.answered.get(number)
        return Fate.UNKNOWN if answer is None else answer.fate


class HistoryWriter:
    """Writes a history; a context manager, for any number of threads. Raises OSError."""

    def __init__(self, path: Path, run: Run) -> None:
        """Raises FileExistsError: a history is evidence, and is not written over."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self.write(run)

    def write(self, event: Run | Sent | Answered) -> None:
        """Add a line. What was written is there, even if this process is killed right after."""
        line = memoryview(msgspec.json.encode(event) + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)


def read_history(path: Path) -> History:
    """Read a history. A last line that was cut off is left out. Raises InputFileError."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror}") from None
    decoder = msgspec.json.Decoder(_Event)
    history: History | None = None
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = decoder.decode(line)
            if isinstance(event, Run):
                if history is not None:
                    raise ValueError("a second run begins")
                history = History(event)
            elif history is None:
                raise ValueError("the first line is no run")
            else:
                _add(history, event)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise InputFileError(f"{path}: line {number}: not of a history: {error}") from None
    if history is None:
        raise InputFileError(f"{path}: there is no history in it")
    return history


def _add(history: History, event: Sent | Answered) -> None:
    if isinstance(event, Sent):
        if event.number in history.sent:
            raise ValueError(f"message {event.number} is sent a second time")
        history.sent[event.number] = event
        return
    if event.number not in history.sent:
        raise ValueError(f"message {event.number} is answered and was not sent")
    if event.number in history.answered:
        raise ValueError(f"message {event.number} is answered a second time")
    history.answered[event.number] = event


def write_text(run: str, number: int, size: int) -> bytes:
    """The plaintext of a load's message, of at least ``size`` bytes."""
    return f"sealrelay load {run} {number}".ljust(size).encode("ascii")


def read_text(plaintext: bytes) -> tuple[str, int] | None:
    """The run and the number in a plaintext of ``write_text``; None for any other."""
    match = _TEXT.fullmatch(plaintext)
    return (match[1].decode("ascii"), int(match[2])) if match else None
