"""What a game day leaves in its folder, read strictly: a typo must not switch a check off.

The histories are those of ``sealrelay load``, the verdicts those of ``sealrelay verify --json``. Both
are parsed here anew, since the control node need not have the application.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

ACKNOWLEDGED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"
"""What a client knows of a message: `sealrelay.history.Fate`."""

WRONGS = ("lost", "doubled", "never_sent", "refused_stored", "altered")
"""What a verdict lists that must not be."""


class Unreadable(Exception):
    """A file is not what it should be; says which, and where in it."""


@dataclass(frozen=True)
class Server:
    """A server, by the name under which it stores and the URL under which coordinators log it."""

    name: str
    url: str


@dataclass(frozen=True)
class Deployment:
    """What was broken."""

    trust_domain: str
    release: str
    store: str
    servers: tuple[Server, ...]
    coordinators: tuple[str, ...]
    clients: tuple[str, ...]


@dataclass(frozen=True)
class ShutOut:
    """A client that the fault shuts out, and in how many milliseconds."""

    client: str
    within_ms: float


@dataclass(frozen=True)
class Bound:
    """What is allowed during a fault; milliseconds."""

    worst_ms: float | None = None
    """From when a message was due to its acknowledgement."""
    recovery_ms: float | None = None
    """The same, for messages that were due before the restore: from the restore."""
    cut: bool = False
    """The fault ends the load as well: a message without an answer is no failure."""
    shut_out: ShutOut | None = None


@dataclass(frozen=True)
class Message:
    """One message of a load; times in seconds since the epoch."""

    number: int
    client: str
    due: float
    sent: float
    answered: float | None = None
    fate: str = UNKNOWN
    server: str = ""
    detail: str = ""

    @property
    def milliseconds(self) -> float | None:
        """From when it was due to its answer; None without one."""
        return None if self.answered is None else (self.answered - self.due) * 1000


@dataclass(frozen=True)
class Verdict:
    """What the store held when all was over, compared with the history."""

    sent: int
    acknowledged: int
    wrong: dict[str, list[int]]
    """Numbers of messages, by ``WRONGS``."""


@dataclass(frozen=True)
class Line:
    """A line of the coordinators' journal; ``at`` in seconds since the epoch."""

    at: float
    text: str


@dataclass(frozen=True)
class Fault:
    """One thing that was broken, and what was seen meanwhile; times in seconds since the epoch."""

    name: str
    title: str
    target: str
    server: Server | None
    act: str
    restore: str
    acted: float | None
    restored: float | None
    bound: Bound
    skipped: str | None
    error: str | None
    history: list[Message] | None = field(default=None, repr=False)
    """None where there is no file."""
    verdict: Verdict | None = None
    journal: list[Line] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evidence:
    """All of a game day."""

    deployment: Deployment
    rate: float
    """Messages a second."""
    began: float
    ended: float | None
    faults: tuple[Fault, ...]


class _Record:
    """A JSON object, and where it stands; each method raises Unreadable."""

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            self.refuse("no JSON object")
        self._value = value

    def refuse(self, what: str) -> NoReturn:
        raise Unreadable(f"{self.where}: {what}")

    def text(self, key: str) -> str:
        value = self._value.get(key)
        if not isinstance(value, str):
            self.refuse(f"{key!r} is no text")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self._value.get(key) is None else self.text(key)

    def number(self, key: str) -> float:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"{key!r} is no number")
        if not math.isfinite(value):
            self.refuse(f"{key!r} is not finite")
        return value

    def number_or_none(self, key: str) -> float | None:
        return None if self._value.get(key) is None else self.number(key)

    def whole(self, key: str) -> int:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(f"{key!r} is no whole number")
        return value

    def truth(self, key: str) -> bool:
        value = self._value.get(key, False)
        if not isinstance(value, bool):
            self.refuse(f"{key!r} is neither true nor false")
        return value

    def items(self, key: str) -> list[object]:
        value = self._value.get(key)
        if not isinstance(value, list):
            self.refuse(f"{key!r} is no list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            self.refuse(f"{key!r} is no list of texts")
        return tuple(str(value) for value in values)

    def numbers(self, key: str) -> list[int]:
        numbers = [
            value
            for value in self.items(key)
            if isinstance(value, int) and not isinstance(value, bool)
        ]
        if len(numbers) != len(self.items(key)):
            self.refuse(f"{key!r} is no list of whole numbers")
        return numbers

    def record(self, key: str) -> _Record:
        return _Record(self._value.get(key), f"{self.where}: {key!r}")

    def records(self, key: str) -> Iterator[_Record]:
        for number, value in enumerate(self.items(key), 1):
            yield _Record(value, f"{self.where}: {key!r}, number {number}")

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def has_list(self, key: str) -> bool:
        return isinstance(self._value.get(key), list)

    def allow(self, keys: set[str]) -> None:
        if strange := sorted(self._value.keys() - keys):
            self.refuse(f"{', '.join(map(repr, strange))} is not known here")


def read_evidence(folder: Path) -> Evidence:
    """Read a folder. Files of a fault that are not there are None. Raises Unreadable."""
    path = folder / "evidence.json"
    text = _read(path)
    if text is None:
        raise Unreadable(f"{path}: there is no such file")
    whole = _Record(_parse(text, str(path)), str(path))
    deployment = _read_deployment(whole.record("deployment"))
    rate = whole.number("rate")
    if rate <= 0:
        whole.refuse("'rate' is not above 0")
    return Evidence(
        deployment=deployment,
        rate=rate,
        began=whole.number("began"),
        ended=whole.number_or_none("ended"),
        faults=tuple(_read_fault(fault, deployment, folder) for fault in whole.records("faults")),
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{path}: line {line}: not of UTF-8") from None


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if error.doc.strip().count("\n") else ""
        raise Unreadable(f"{where}: {line}no JSON: {error.msg}") from None
    except RecursionError:
        raise Unreadable(f"{where}: no JSON of ours: nested too deeply") from None


def _read_deployment(record: _Record) -> Deployment:
    store = record.text("store")
    return Deployment(
        trust_domain=record.text("trust_domain"),
        release=record.text("release"),
        store={"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(store, store),
        servers=tuple(
            Server(server.text("name"), server.text("url")) for server in record.records("servers")
        ),
        coordinators=tuple(one.text("name") for one in record.records("coordinators")),
        clients=record.texts("clients"),
    )


def _read_fault(record: _Record, deployment: Deployment, folder: Path) -> Fault:
    name = record.text("name")
    record.where = f"{record.where} ({name})"
    skipped = record.text_or_none("skipped")
    named = record.text_or_none("server")
    server = next((one for one in deployment.servers if one.name == named), None)
    if named is not None and server is None:
        record.refuse(f"{named!r} is no server of this deployment")
    fault = Fault(
        name=name,
        title=record.text("title"),
        target=record.text_or_none("target") or "",
        server=server,
        act=record.text_or_none("act") or "",
        restore=record.text_or_none("restore") or "",
        acted=record.number_or_none("acted"),
        restored=record.number_or_none("restored"),
        bound=_read_bound(record) if skipped is None else Bound(),
        skipped=skipped,
        error=record.text_or_none("error"),
    )
    if skipped is not None:
        return fault
    history, verdict, journal = (
        _find_file(record, key, folder) for key in ("history", "verdict", "journal")
    )
    return replace(
        fault,
        history=history and _read_history(history),
        verdict=verdict and _read_verdict(verdict),
        journal=journal and _read_journal(journal),
    )


def _read_bound(record: _Record) -> Bound:
    bound = record.record("bound")
    bound.allow({"worst_ms", "recovery_ms", "cut", "shut_out"})
    shut_out = None
    if bound.has("shut_out"):
        client = bound.record("shut_out")
        client.allow({"client", "within_ms"})
        shut_out = ShutOut(client.text("client"), client.number("within_ms"))
    worst, recovery = bound.number_or_none("worst_ms"), bound.number_or_none("recovery_ms")
    return Bound(worst, recovery, bound.truth("cut"), shut_out)


def _find_file(record: _Record, key: str, folder: Path) -> Path | None:
    name = record.text_or_none(key)
    if name is None:
        return None
    if Path(name).name != name:
        record.refuse(f"{key!r} is no file of this folder")
    return folder / name if (folder / name).exists() else None


def _read_lines(path: Path) -> Iterator[_Record]:
    """A last line that was cut off is left out: who wrote it was killed."""
    lines = (_read(path) or "").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        where = f"{path}: line {number}"
        yield _Record(_parse(line, where), where)


def _read_history(path: Path) -> list[Message]:
    began: float | None = None
    messages: dict[int, Message] = {}
    for record in _read_lines(path):
        event = record.text("event")
        if event == "run" and began is None:
            began = record.number("began")
        elif event == "run" or began is None:
            record.refuse("a history has one run, in its first line")
        elif event == "sent":
            message = _read_sent(record, began)
            if message.number in messages:
                record.refuse(f"message {message.number} is sent a second time")
            messages[message.number] = message
        elif event == "answered":
            number = record.whole("number")
            if number not in messages or messages[number].answered is not None:
                record.refuse(f"message {number} is not sent, or answered a second time")
            messages[number] = _read_answered(record, began, messages[number])
        else:
            record.refuse(f"{event!r} is no event of a history")
    if began is None:
        raise Unreadable(f"{path}: line 1: there is no run")
    return [messages[number] for number in sorted(messages)]


def _read_sent(record: _Record, began: float) -> Message:
    return Message(
        number=record.whole("number"),
        client=record.text("client"),
        due=began + record.number("due"),
        sent=began + record.number("sent"),
    )


def _read_answered(record: _Record, began: float, message: Message) -> Message:
    fate = record.text("fate")
    if fate not in (ACKNOWLEDGED, REFUSED, UNKNOWN):
        record.refuse(f"{fate!r} is no fate of a message")
    return Message(
        number=message.number,
        client=message.client,
        due=message.due,
        sent=message.sent,
        answered=began + record.number("answered"),
        fate=fate,
        server=record.text_or_none("server") or "",
        detail=record.text_or_none("detail") or "",
    )


def _read_verdict(path: Path) -> Verdict:
    record = _Record(_parse(_read(path) or "", str(path)), str(path))
    return Verdict(
        sent=record.whole("sent"),
        acknowledged=record.whole("acknowledged"),
        wrong={kind: record.numbers(kind) for kind in WRONGS},
    )


def _read_journal(path: Path) -> list[Line]:
    lines = []
    for record in _read_lines(path):
        stamp = record.text("__REALTIME_TIMESTAMP")
        if not (stamp.isascii() and stamp.isdigit()):
            record.refuse("'__REALTIME_TIMESTAMP' is no number of microseconds")
        lines.append(Line(int(stamp) / 1e6, _read_text(record)))
    return sorted(lines, key=lambda line: line.at)


def _read_text(record: _Record) -> str:
    """journalctl(1) writes a message that is no text as its bytes, and a very long one as null."""
    if not record.has("MESSAGE"):
        return ""
    if not record.has_list("MESSAGE"):
        return record.text("MESSAGE")
    numbers = record.numbers("MESSAGE")
    if not all(0 <= number < 256 for number in numbers):
        record.refuse("'MESSAGE' is neither a text nor bytes")
    return bytes(numbers).decode(errors="replace")
