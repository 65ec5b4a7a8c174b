"""The page of a game day: one file that needs no other, for a browser, a printer and a wall."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import jinja2
from markupsafe import Markup

from game_day.evidence import ACKNOWLEDGED, REFUSED, WRONGS, Deployment, Evidence, Fault
from game_day.judge import PHASES, Judgement
from game_day.picture import MARKS, draw_fault, draw_key, sort_messages
from game_day.wording import say_count, say_milliseconds, say_offset, spell_count

_LINES = 8
"""Of what coordinators recorded, for each fault."""


@dataclass(frozen=True)
class ChangeEntry:
    """What coordinators found of a server, as often as they did."""

    at: str
    """When it first was: seconds from the act."""
    text: str
    times: int


@dataclass(frozen=True)
class Chapter:
    """What the page tells of one fault."""

    number: int
    anchor: str
    fault: Fault
    judgement: Judgement
    noticed: str
    summary: str
    """The verdict, as a sentence."""
    picture: Markup | None
    description: str
    """The picture in words."""
    key: list[tuple[Markup, str]]
    """Marks of the picture, and what they stand for."""
    facts: list[tuple[str, str]]
    entries: list[ChangeEntry]
    more_entries: int


def make_page(evidence: Evidence, judgements: list[Judgement]) -> str:
    """HTML; the same for the same evidence."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": say_milliseconds, "thousands": "{:,}".format, "tie": tie_units}
    template = environment.get_template("report.html.j2")
    pairs = zip(evidence.faults, judgements, strict=True)
    return template.render(
        evidence=evidence,
        headline=say_headline(judgements),
        passed="failed" not in {judgement.outcome for judgement in judgements},
        messages=sum(judgement.messages for judgement in judgements),
        day=_say_time(evidence.began, "%-d %B %Y"),
        began=_say_time(evidence.began, "%Y-%m-%d %H:%M:%S UTC"),
        ended=_say_time(evidence.ended, "%Y-%m-%d %H:%M:%S UTC"),
        phases=PHASES,
        chapters=[
            _make_chapter(number, fault, judgement, evidence.deployment)
            for number, (fault, judgement) in enumerate(pairs, 1)
        ],
    )


def tie_units(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=[0-9]) (?=m?s\b)", "\N{NO-BREAK SPACE}", text)


def say_headline(judgements: list[Judgement]) -> str:
    """The whole day in a sentence."""
    tried = [judgement for judgement in judgements if judgement.outcome != "skipped"]
    if not tried:
        return "Nothing was broken, so nothing is shown."
    messages = sum(judgement.messages for judgement in tried)
    were = "thing was" if len(tried) == 1 else "things were"
    start = spell_count(len(tried), were, were).capitalize()
    start += f" broken while {say_count(messages, 'message')} were on their way: "
    failed = sum(judgement.outcome == "failed" for judgement in tried)
    wrongs = {
        kind: sum(judgement.wrong[kind] for judgement in tried if judgement.wrong)
        for kind in WRONGS
    }
    unknown = sum(judgement.wrong is None for judgement in tried)
    if not failed:
        return (
            f"{start}none was lost, none was stored twice, and each fault stayed within its bound."
        )
    parts = [spell_count(failed, "fault") + " went beyond what is allowed"]
    for kind, verb in (("lost", "lost"), ("doubled", "stored twice")):
        count = wrongs[kind]
        if count:
            parts.append(f"{say_count(count, 'message was', 'messages were')} {verb}")
        elif not unknown:
            parts.append(f"none was {verb}")
    if unknown:
        parts.append(f"what became of the messages of {spell_count(unknown, 'fault')} is unknown")
    return f"{start}{', '.join(parts[:-1])}{' and ' if parts[:-1] else ''}{parts[-1]}."


def say_noticed(fault: Fault, judgement: Judgement) -> str:
    """What those who sent messages saw of a fault."""
    if judgement.outcome == "skipped":
        return "-"
    if not judgement.messages:
        return "Not known: nothing was measured."
    parts = []
    if judgement.failed:
        of = f"{judgement.failed:,} of {say_count(judgement.messages, 'message')}"
        parts.append(f"{of} failed")
    elif fault.bound.cut:
        parts.append(
            f"The load was cut off, with {say_count(judgement.excused, 'message')} under way"
        )
    else:
        parts.append("No message failed")
    if fault.bound.shut_out is not None:
        client = fault.bound.shut_out.client
        parts.append(f"{client} was last let in {say_milliseconds(judgement.shut_out_ms)} after it")
    if judgement.worst_ms is not None:
        parts.append(f"the slowest took {say_milliseconds(judgement.worst_ms)}")
    if judgement.recovery_ms is not None:
        parts[-1] += f", and {say_milliseconds(judgement.recovery_ms)} at most from the restore on"
    return f"{'; '.join(parts)}."


def _make_chapter(
    number: int, fault: Fault, judgement: Judgement, deployment: Deployment
) -> Chapter:
    anchor = f"fault-{number}"
    names = [server.name for server in deployment.servers]
    drawn = fault.history and fault.acted is not None and fault.restored is not None
    drawn = drawn and (fault.restored or 0.0) >= (fault.acted or 0.0)
    entries = _gather_changes(fault)
    return Chapter(
        number=number,
        anchor=anchor,
        fault=fault,
        judgement=judgement,
        noticed=say_noticed(fault, judgement),
        summary=_say_summary(fault, judgement),
        picture=Markup(draw_fault(fault, names, anchor)) if drawn else None,  # noqa: S704 - escaped
        description=_describe_picture(fault, judgement),
        key=_make_key(fault, names),
        facts=_list_facts(fault, judgement),
        entries=entries[:_LINES],
        more_entries=max(0, len(entries) - _LINES),
    )


def _say_summary(fault: Fault, judgement: Judgement) -> str:
    if judgement.outcome == "skipped":
        return f"Skipped: {judgement.reasons[0]}."
    if judgement.outcome == "failed":
        return "Failed, because:"
    stored = say_count(judgement.acknowledged, "acknowledged message")
    parts = [f"Passed. Of {stored} each is in the store once, and nothing that must not be there"]
    if fault.bound.cut:
        parts.append(f"the load ended with the fault, {judgement.excused:,} messages unanswered")
    if fault.bound.shut_out is not None:
        last = say_milliseconds(judgement.shut_out_ms)
        parts.append(
            f"{fault.bound.shut_out.client} was shut out: let in last {last} after the act"
        )
    for took, allowed, since in (
        (judgement.worst_ms, fault.bound.worst_ms, ""),
        (judgement.recovery_ms, fault.bound.recovery_ms, " from the restore on"),
    ):
        if allowed is not None:
            told = f"{say_milliseconds(took)}{since} (allowed: {say_milliseconds(allowed)})"
            parts.append(f"the slowest took {told}")
    return f"{'; '.join(parts)}."


def _describe_picture(fault: Fault, judgement: Judgement) -> str:
    spreads = [
        f"{phase} the fault half of the messages took up to {say_milliseconds(spread.p50)}, "
        f"the slowest {say_milliseconds(spread.worst)}"
        for phase, spread in judgement.spread.items()
        if spread is not None
    ]
    return f"Latency of each message over time, {fault.title}: {'; '.join(spreads)}."


def _make_key(fault: Fault, names: list[str]) -> list[tuple[Markup, str]]:
    meanings = {
        "bad": "failed, lost or stored wrongly",
        "excused": "not acknowledged, as this fault brings with it",
    }
    key = []
    for kind, messages in sort_messages(fault, names).items():
        if not messages:
            continue
        stored_by = sorted({message.server for message in messages if message.server})
        words = meanings.get(kind) or f"stored by {', '.join(stored_by)}"
        key.append((Markup(draw_key(kind)), words))  # noqa: S704 - nothing of the evidence
    assert set(meanings) < set(MARKS)
    return key


def _list_facts(fault: Fault, judgement: Judgement) -> list[tuple[str, str]]:
    messages = fault.history or []
    refused = sum(message.fate == REFUSED for message in messages)
    unanswered = sum(message.fate not in (ACKNOWLEDGED, REFUSED) for message in messages)
    facts = [
        ("sent", f"{judgement.messages:,}"),
        ("acknowledged", f"{judgement.acknowledged:,}"),
        ("refused", f"{refused:,}"),
        ("no certain answer", f"{unanswered:,}"),
    ]
    wrong = judgement.wrong
    facts += [
        (words, "not known" if wrong is None else f"{wrong[kind]:,}")
        for kind, words in (("lost", "lost"), ("doubled", "stored twice"))
    ]
    if fault.server is not None:
        facts += [
            ("out of use after", say_milliseconds(judgement.eject_ms)),
            ("back in use after", say_milliseconds(judgement.readmit_ms)),
        ]
    if fault.bound.shut_out is not None:
        facts.append(("let in last after", say_milliseconds(judgement.shut_out_ms)))
    if fault.acted is not None and fault.restored is not None:
        facts.append(("broken for", say_milliseconds((fault.restored - fault.acted) * 1000)))
    return facts


def _gather_changes(fault: Fault) -> list[ChangeEntry]:
    """What coordinators found of the server, or else of any; each once."""
    if fault.acted is None:
        return []
    first: dict[str, float] = {}
    times: Counter[str] = Counter()
    for change in fault.changes or []:
        if change.at < fault.acted or (fault.server and change.server != fault.server.name):
            continue
        text = f"{change.server} is {change.state}" + (change.reason and f": {change.reason}")
        first.setdefault(text, change.at)
        times[text] += 1
    return [
        ChangeEntry(say_offset(at - fault.acted), text, times[text]) for text, at in first.items()
    ]


def _say_time(seconds: float | None, form: str) -> str:
    if seconds is None:
        return "not written down"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(form)
