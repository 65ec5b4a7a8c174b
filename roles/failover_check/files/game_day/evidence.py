"""What a game day leaves in its folder, read strictly: a typo must not switch a check off.

The histories are those of ``sealrelay load``, the verdicts those of ``sealrelay verify --json``,
the reports those of the coordinators' workers. All are parsed here anew, since the control node
need not have the application. Nothing is read from a journal, since journald drops lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from game_day.records import Record, Unreadable, parse_json, read_lines, read_text

ACKNOWLEDGED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"
"""What a client knows of a message: `sealrelay.history.Fate`."""

STATES = ("down", "slow", "healthy")
"""What a coordinator thinks of a server, the worst first: `sealrelay.dispatch.decisions.Health`."""

WRONGS = ("lost", "doubled", "never_sent", "refused_stored", "altered")
"""What a verdict lists that must not be."""


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
class Change:
    """A coordinator thought otherwise of a server from a time on: seconds since the epoch."""

    at: float
    server: str
    was: str
    state: str
    """down, slow or healthy, as ``was``."""
    reason: str


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
    restoring: float | None
    """When the command that restores it was begun, where that is known."""
    restored: float | None
    """When it was done."""
    bound: Bound
    skipped: str | None
    error: str | None
    history: list[Message] | None = field(default=None, repr=False)
    """None where there is no file."""
    verdict: Verdict | None = None
    changes: list[Change] | None = field(default=None, repr=False)
    """As the coordinators recorded them, in the order of time."""


@dataclass(frozen=True)
class Evidence:
    """All of a game day."""

    deployment: Deployment
    rate: float
    """Messages a second."""
    began: float
    ended: float | None
    faults: tuple[Fault, ...]


def read_evidence(folder: Path) -> Evidence:
    """Read a folder. Files of a fault that are not there are None. Raises Unreadable."""
    path = folder / "evidence.json"
    text = read_text(path)
    if text is None:
        raise Unreadable(f"{path}: there is no such file")
    whole = Record(parse_json(text, str(path)), str(path))
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


def _read_deployment(record: Record) -> Deployment:
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


def _read_fault(record: Record, deployment: Deployment, folder: Path) -> Fault:
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
        restoring=record.number_or_none("restoring") if record.has("restoring") else None,
        restored=record.number_or_none("restored"),
        bound=_read_bound(record) if skipped is None else Bound(),
        skipped=skipped,
        error=record.text_or_none("error"),
    )
    if skipped is not None:
        return fault
    history, verdict, reports = (
        _find_file(record, key, folder) for key in ("history", "verdict", "reports")
    )
    return replace(
        fault,
        history=None if history is None else _read_history(history),
        verdict=None if verdict is None else _read_verdict(verdict),
        changes=None if reports is None else _read_reports(reports),
    )


def _read_bound(record: Record) -> Bound:
    bound = record.record("bound")
    bound.allow({"worst_ms", "recovery_ms", "cut", "shut_out"})
    shut_out = None
    if bound.has("shut_out"):
        client = bound.record("shut_out")
        client.allow({"client", "within_ms"})
        shut_out = ShutOut(client.text("client"), client.number("within_ms"))
    worst, recovery = bound.number_or_none("worst_ms"), bound.number_or_none("recovery_ms")
    return Bound(worst, recovery, bound.truth("cut"), shut_out)


def _find_file(record: Record, key: str, folder: Path) -> Path | None:
    name = record.text_or_none(key)
    if name is None:
        return None
    if Path(name).name != name:
        record.refuse(f"{key!r} is no file of this folder")
    return folder / name if (folder / name).exists() else None


def _read_history(path: Path) -> list[Message]:
    began: float | None = None
    messages: dict[int, Message] = {}
    for record in read_lines(path):
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


def _read_sent(record: Record, began: float) -> Message:
    return Message(
        number=record.whole("number"),
        client=record.text("client"),
        due=began + record.number("due"),
        sent=began + record.number("sent"),
    )


def _read_answered(record: Record, began: float, message: Message) -> Message:
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
    record = Record(parse_json(read_text(path) or "", str(path)), str(path))
    return Verdict(
        sent=record.whole("sent"),
        acknowledged=record.whole("acknowledged"),
        wrong={kind: record.numbers(kind) for kind in WRONGS},
    )


def _read_reports(path: Path) -> list[Change]:
    """A line is what one worker of a coordinator says: `sealrelay.dispatch.observer.Report`."""
    changes = [
        _read_change(change, server.text("name"))
        for report in read_lines(path)
        for server in report.records("servers")
        for change in server.records("changes")
    ]
    return sorted(changes, key=lambda change: change.at)


def _read_change(record: Record, server: str) -> Change:
    was, state = record.text("was"), record.text("state")
    for name in (was, state):
        if name not in STATES:
            record.refuse(f"{name!r} is no state of a server")
    return Change(record.number("at"), server, was, state, record.text("reason"))
