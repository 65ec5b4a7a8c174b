"""Whether each fault stayed within its bound, by the evidence alone.

Nothing here reads a file or a clock. A check that cannot fail is none, so what shows too little (a
load that did not run, a fault that reached nothing) fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from game_day.evidence import (
    ACKNOWLEDGED,
    REFUSED,
    STATES,
    UNKNOWN,
    WRONGS,
    Bound,
    Change,
    Evidence,
    Fault,
    Message,
)
from game_day.wording import say_count, say_milliseconds

PHASES = ("before", "during", "after")
"""Of a fault, by when a message was due: before the act, before the restore, or later."""

LEAD = 1.0
"""Seconds before the act in which the load must have run."""
_ENOUGH = 0.5
"""Share of the messages which the rate promises that must be there."""

_SAID = {
    "lost": "lost: acknowledged, and not in the store",
    "doubled": "stored twice",
    "never_sent": "stored and never sent",
    "refused_stored": "refused and stored all the same",
    "altered": "stored as another's, or under another id",
}


@dataclass(frozen=True)
class Spread:
    """How long messages took; milliseconds, by nearest rank."""

    p50: float
    p99: float
    worst: float


@dataclass
class Judgement:
    """One fault, judged; times in milliseconds."""

    name: str
    title: str
    target: str
    outcome: str
    """passed, failed or skipped."""
    reasons: list[str] = field(default_factory=list)
    """Why it failed, or was skipped."""
    bound: str = ""
    """What is allowed, in words."""
    messages: int = 0
    acknowledged: int = 0
    failed: int = 0
    excused: int = 0
    """Not acknowledged, as this fault brings with it."""
    wrong: dict[str, int] | None = None
    """How many are lost, doubled, ...; None without a verdict."""
    worst_ms: float | None = None
    """Of the acknowledged messages that the bound is about, and that the fault met."""
    recovery_ms: float | None = None
    """The same, for messages that were due before the restore: from the restore."""
    eject_ms: float | None = None
    """From the act until a coordinator found that the server failed or is slow."""
    readmit_ms: float | None = None
    """From the restore until a coordinator found that it is back."""
    shut_out_ms: float | None = None
    """From the act until the last message of the client was sent that was acknowledged."""
    stored: dict[str, dict[str, int]] = field(default_factory=dict)
    """Acknowledged messages by phase and by who stored them."""
    spread: dict[str, Spread | None] = field(default_factory=dict)
    """By phase."""


def judge(evidence: Evidence) -> list[Judgement]:
    """Judge each fault, in their order."""
    return [judge_fault(fault, evidence.rate) for fault in evidence.faults]


def has_passed(judgements: Sequence[Judgement]) -> bool:
    """Whether something was shown, and nothing failed."""
    outcomes = {judgement.outcome for judgement in judgements}
    return "passed" in outcomes and "failed" not in outcomes


def judge_fault(fault: Fault, rate: float) -> Judgement:
    """Judge one fault under a load of ``rate`` messages a second."""
    judgement = Judgement(fault.name, fault.title, fault.target, "skipped")
    if fault.skipped is not None:
        judgement.reasons = [fault.skipped]
        return judgement
    judgement.bound = describe_bound(fault.bound)
    _measure(fault, judgement)
    judgement.reasons = list(_find_reasons(fault, rate))
    judgement.outcome = "failed" if judgement.reasons else "passed"
    return judgement


def describe_bound(bound: Bound) -> str:
    """What is allowed, in words."""
    allowed = []
    if bound.worst_ms is not None:
        allowed.append(f"each message within {say_milliseconds(bound.worst_ms)}")
    if bound.recovery_ms is not None:
        allowed.append(f"each message within {say_milliseconds(bound.recovery_ms)} of the restore")
    if bound.shut_out is not None:
        within = say_milliseconds(bound.shut_out.within_ms)
        allowed.append(f"{bound.shut_out.client} shut out within {within}")
    if bound.cut:
        allowed.append("the load may be cut off")
    return "; ".join(allowed) or "no failed message"


def find_phase(message: Message, fault: Fault) -> str:
    """When a message was due; without an act all is before."""
    if fault.acted is None or message.due < fault.acted:
        return "before"
    return "during" if fault.restored is None or message.due < fault.restored else "after"


def is_excused(message: Message, fault: Fault) -> bool:
    """Whether a message that was not acknowledged is what the fault brings with it."""
    if message.answered is not None and (fault.acted is None or message.answered < fault.acted):
        return False
    if fault.bound.cut and message.fate == UNKNOWN:
        return True
    return not _is_bound(message, fault)


def find_ejection(fault: Fault) -> float | None:
    """When a coordinator first found that the server failed or is slow; seconds since the epoch."""
    return next((change.at for change in _since_act(fault) if not _is_back(change)), None)


def find_readmission(fault: Fault) -> float | None:
    """When a coordinator first found that the server is back; seconds since the epoch."""
    if fault.restored is None or find_ejection(fault) is None:
        return None
    last_out = True
    for change in _since_act(fault):
        last_out = not _is_back(change)
        if not last_out and change.at >= fault.restored:
            return change.at
    # It came back while the command that restores it was still running.
    return None if last_out else fault.restored


def _since_act(fault: Fault) -> Iterable[Change]:
    """What the coordinators recorded of the server that was hit."""
    if fault.server is None or fault.acted is None:
        return []
    return [
        change
        for change in fault.changes or []
        if change.server == fault.server.name and change.at >= fault.acted
    ]


def _is_back(change: Change) -> bool:
    """One that was down may be slow first."""
    return STATES.index(change.state) > STATES.index(change.was)


def _is_bound(message: Message, fault: Fault) -> bool:
    """Whether the bounds on latency and failures are about this message."""
    return fault.bound.shut_out is None or message.client != fault.bound.shut_out.client


def _fails(message: Message, fault: Fault) -> bool:
    return message.fate != ACKNOWLEDGED and not is_excused(message, fault)


def _measure(fault: Fault, judgement: Judgement) -> None:
    messages = fault.history or []
    acknowledged = [message for message in messages if message.fate == ACKNOWLEDGED]
    judgement.messages = len(messages)
    judgement.acknowledged = len(acknowledged)
    judgement.failed = sum(_fails(message, fault) for message in messages)
    judgement.excused = len(messages) - len(acknowledged) - judgement.failed
    if fault.verdict is not None:
        judgement.wrong = {kind: len(fault.verdict.wrong[kind]) for kind in WRONGS}
    met = [message for message in acknowledged if _meets(message, fault)]
    judgement.worst_ms = max(_take_times(met, fault), default=None)
    if fault.bound.recovery_ms is not None and fault.restored is not None:
        since = _take_times_since(fault, fault.restored)
        judgement.recovery_ms = max(since.values(), default=None)
    ejected, readmitted = find_ejection(fault), find_readmission(fault)
    if ejected is not None and fault.acted is not None:
        judgement.eject_ms = (ejected - fault.acted) * 1000
    if readmitted is not None and fault.restored is not None:
        judgement.readmit_ms = (readmitted - fault.restored) * 1000
    if fault.bound.shut_out is not None and fault.acted is not None:
        last = [message.sent for message in _of_shut_out(fault) if message.fate == ACKNOWLEDGED]
        judgement.shut_out_ms = max(0.0, (max(last, default=0.0) - fault.acted) * 1000)
    for phase in PHASES:
        mine = [message for message in acknowledged if find_phase(message, fault) == phase]
        judgement.stored[phase] = dict(sorted(Counter(one.server for one in mine).items()))
        judgement.spread[phase] = _spread(_take_times(mine, fault))


def _meets(message: Message, fault: Fault) -> bool:
    """Whether the fault can have touched a message: it had no answer yet when that began.

    What was slow before has another cause: the load's first connections, say.
    """
    return message.answered is None or fault.acted is None or message.answered >= fault.acted


def _take_times(messages: Sequence[Message], fault: Fault) -> list[float]:
    return [
        message.milliseconds
        for message in messages
        if message.milliseconds is not None and _is_bound(message, fault)
    ]


def _take_times_since(fault: Fault, start: float) -> dict[Message, float]:
    """Milliseconds to its acknowledgement, from when a message was due but not before ``start``."""
    return {
        message: max(0.0, message.answered - max(message.due, start)) * 1000
        for message in fault.history or []
        if message.fate == ACKNOWLEDGED
        and message.answered is not None
        and _is_bound(message, fault)
        and _meets(message, fault)
    }


def _spread(times: list[float]) -> Spread | None:
    if not times:
        return None
    ordered = sorted(times)
    p50, p99 = (ordered[max(0, -(-len(ordered) * share // 100) - 1)] for share in (50, 99))
    return Spread(p50, p99, ordered[-1])


def _of_shut_out(fault: Fault) -> list[Message]:
    """What the client that is shut out was told until it may be let in again."""
    end = fault.restored if fault.restoring is None else fault.restoring
    return [
        message
        for message in fault.history or []
        if not _is_bound(message, fault)
        and message.answered is not None
        and (end is None or message.answered < end)
    ]


def _find_reasons(fault: Fault, rate: float) -> Iterator[str]:
    if fault.error is not None:
        yield f"Something went wrong: {fault.error}"
    if fault.history is None:
        yield "No evidence: the load's history is missing."
    if fault.verdict is None:
        yield "No evidence: the verdict on what the store holds is missing."
    if fault.changes is None:
        yield "No evidence: what the coordinators recorded of the servers is missing."
    yield from _check_verdict(fault)
    yield from _check_failures(fault)
    if fault.acted is None or fault.restored is None:
        yield "No evidence: it is not written down when it was broken and when it was restored."
    elif fault.restored < fault.acted:
        yield "No evidence: it was restored before it was broken."
    elif fault.history is not None:
        yield from _check_latencies(fault, fault.acted, fault.restored)
        yield from _check_shut_out(fault, fault.acted)
        yield from _check_load(fault, fault.acted, fault.restored, rate)
        yield from _check_effect(fault, fault.acted, fault.restored)


def _check_load(fault: Fault, acted: float, restored: float, rate: float) -> Iterator[str]:
    """The load ran before the fault and, unless that cut it off, during it."""
    messages = fault.history or []
    phases = [("in the second before it was broken", acted - LEAD, acted)]
    if not fault.bound.cut:
        phases.append(("while it was broken", acted, restored))
    for when, begin, end in phases:
        found = sum(begin <= message.due < end for message in messages)
        wanted = max(1, int((end - begin) * rate * _ENOUGH))
        if found < wanted:
            yield (
                f"No evidence: {say_count(found, 'message')} sent {when}, at least {wanted:,} "
                f"are needed at {rate:g} a second."
            )
    missing = max((message.number for message in messages), default=0) - len(messages)
    if missing > 0 and not fault.bound.cut:
        yield f"{say_count(missing, 'message was', 'messages were')} due and never sent."


def _check_effect(fault: Fault, acted: float, restored: float) -> Iterator[str]:
    """The fault reached the server: a coordinator found so, or it stored nothing in the end."""
    if fault.server is None or find_ejection(fault) is not None:
        return
    half = acted + (restored - acted) / 2
    stored = sum(
        message.server == fault.server.name and half <= message.due < restored
        for message in fault.history or []
    )
    if stored:
        yield (
            f"No evidence that the fault reached {fault.server.name}: no coordinator found that it "
            f"failed or is slow, and it stored {say_count(stored, 'message')} in the second half."
        )


def _check_failures(fault: Fault) -> Iterator[str]:
    failures = [message for message in fault.history or [] if _fails(message, fault)]
    if not failures:
        return
    refused = sum(message.fate == REFUSED for message in failures)
    parts = [(refused, "refused"), (len(failures) - refused, "without an acknowledgement")]
    kinds = ", ".join(f"{count:,} {kind}" for count, kind in parts if count)
    first = next((message for message in failures if message.detail), failures[0])
    said = f": {first.detail}" if first.detail else "."
    of = f"{len(failures):,} of {say_count(len(fault.history or []), 'message')}"
    yield f"{of} failed ({kinds}), such as number {first.number}{said}"


def _check_latencies(fault: Fault, acted: float, restored: float) -> Iterator[str]:
    bound = fault.bound
    before = [one for one in fault.history or [] if not _meets(one, fault)]
    calm = _spread(_take_times(before, fault))
    for limit, start, of in (
        (bound.worst_ms, 0.0, "after they were due"),
        (bound.recovery_ms, restored, "after the restore or after they were due"),
    ):
        if limit is None:
            continue
        times = _take_times_since(fault, start)
        late = {message: time for message, time in times.items() if time > limit}
        if late:
            worst = max(late, key=lambda message: late[message])
            yield (
                f"{say_count(len(late), 'message was', 'messages were')} acknowledged later than "
                f"{limit:,.0f} ms {of}; the latest, number {worst.number}, after "
                f"{late[worst]:,.0f} ms (due {worst.due - acted:+.3f} s from the act)."
                + (f" Before it, 99 of 100 took at most {calm.p99:,.0f} ms." if calm else "")
            )
        if start and not any((message.answered or 0.0) > start for message in times):
            yield "No evidence: no message was acknowledged after the restore."


def _check_shut_out(fault: Fault, acted: float) -> Iterator[str]:
    shut_out = fault.bound.shut_out
    if shut_out is None:
        return
    messages = _of_shut_out(fault)
    known = [one for one in messages if one.fate == ACKNOWLEDGED and one.due < acted]
    if not known:
        yield f"No evidence: {shut_out.client} was not let in before it was shut out either."
    late = [
        message
        for message in messages
        if message.fate == ACKNOWLEDGED and (message.sent - acted) * 1000 > shut_out.within_ms
    ]
    if late:
        last = max(message.sent for message in late) - acted
        were = say_count(len(late), "message was", "messages were")
        yield (
            f"{were} acknowledged that {shut_out.client} sent more than "
            f"{shut_out.within_ms:,.0f} ms after the act, the last {last:.3f} s after it."
        )
    if not any(one.fate == REFUSED and one.sent >= acted for one in messages):
        yield f"No evidence: no message of {shut_out.client} was refused."


def _check_verdict(fault: Fault) -> Iterator[str]:
    if fault.verdict is None:
        return
    for kind, numbers in fault.verdict.wrong.items():
        if numbers:
            named = ", ".join(map(str, numbers[:5]))
            more = f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else ""
            were = say_count(len(numbers), "message was", "messages were")
            yield f"{were} {_SAID[kind]} (number {named}{more})."
    if fault.history is None:
        return
    acknowledged = sum(message.fate == ACKNOWLEDGED for message in fault.history)
    for kind, told, found in (
        ("sent", len(fault.history), fault.verdict.sent),
        ("acknowledged", acknowledged, fault.verdict.acknowledged),
    ):
        if told != found:
            yield (
                f"No evidence: the verdict is on {say_count(found, 'message')} {kind}, "
                f"the history has {told:,}."
            )
