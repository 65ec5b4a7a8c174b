"""The page that ``GET /status`` shows: what ``/api/status`` and ``/metrics`` say, for people.

It needs no script, and its one style sheet is part of it: the browser runs and fetches nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property

import gevent
from flask import Flask, Response, render_template

from sealrelay import __version__, metrics
from sealrelay.dispatch.decisions import Health
from sealrelay.dispatch.observer import Report, ServerReport
from sealrelay.figures import Scrape, read_families
from sealrelay.identity import Role
from sealrelay.text import escape_text
from sealrelay.web import release_folder
from sealrelay.words import (
    CRL_SOON,
    LEAF_SOON,
    tell_duration,
    tell_milliseconds,
    tell_rate,
    tell_time_left,
)

_log = logging.getLogger("sealrelay.page")

REFRESH_EVERY = 5
"""Seconds until the page asks to be loaded again."""
_LOOK_EVERY = 5.0
"""Seconds between two looks at what was counted. One costs about a millisecond."""
_STEPS = 120
"""Steps from look to look that are kept: ten minutes."""
_RECENT = 60.0
"""Seconds that the page calls recent."""
_SHARES = (0.5, 0.9, 0.99, 0.999)
_CHART_HEIGHT = 40.0
_BAR_WIDTH = 0.8
_LEAST_BAR = 0.75
"""So that one message among thousands is still seen."""


@dataclass(frozen=True)
class Step:
    """What came between two looks: messages and problems a second, milliseconds."""

    rate: float
    problems: float
    p99: float


class History:
    """What all workers of this service have counted lately."""

    def __init__(self) -> None:
        self._looks: deque[Scrape] = deque(maxlen=int(_RECENT / _LOOK_EVERY) + 2)
        self.steps: deque[Step] = deque(maxlen=_STEPS)
        """Of the last ten minutes, the newest last."""

    def keep_looking(self) -> None:
        """Look again and again; never returns."""
        while True:
            try:
                self.note(look())
            except Exception:  # noqa: BLE001 - a full /run, say; there is another try soon
                _log.exception("The figures could not be read")
            gevent.sleep(_LOOK_EVERY)

    def note(self, now: Scrape) -> None:
        """Remember a look, and what came since the one before."""
        if self._looks:
            came, seconds = now.since(self._looks[-1])
            if seconds > 0:  # a clock that was set back makes no step
                p99 = came.find_latency(0.99) or 0.0
                self.steps.append(Step(came.answered / seconds, came.problems / seconds, p99))
        self._looks.append(now)

    def recent(self, now: Scrape) -> tuple[Scrape, float]:
        """What came in the last minute, or since it is known, and in how many seconds."""
        young = (past for past in self._looks if now.at - past.at <= _RECENT + _LOOK_EVERY)
        return now.since(next(young, None))


def look() -> Scrape:
    """What all workers have counted until now."""
    return read_families(metrics.collect(Role.COORDINATOR), time.time())


@dataclass(frozen=True)
class Verdict:
    """What there is to say of everything in one sentence; ``level``: good, warn or bad."""

    level: str
    text: str
    detail: str


@dataclass(frozen=True)
class Expiry:
    """When something runs out, and whether somebody is to see to it."""

    ends: float
    left: str
    level: str


@dataclass(frozen=True)
class Validity:
    """The certificates and the CRL that one service uses."""

    owner: str
    known: bool
    leaf: Expiry | None
    ca: Expiry | None
    crl: Expiry | None

    @property
    def lasts(self) -> bool:
        """Whether nobody has to see to any of them."""
        return all(each.level == "good" for each in (self.leaf, self.ca, self.crl) if each)


@dataclass(frozen=True)
class Bar:
    """One step of a chart, all in its own units; ``bad`` is the upper part of ``height``."""

    x: int
    height: float
    bad: float = 0.0


@dataclass(frozen=True)
class Chart:
    """Bars of ten minutes, the newest at the right."""

    bars: list[Bar]
    highest: float

    @property
    def width(self) -> int:
        return _STEPS

    @property
    def height(self) -> float:
        return _CHART_HEIGHT

    @property
    def outline(self) -> str:
        """All bars as one SVG path."""
        return _outline((bar.x, self.height, bar.height) for bar in self.bars)

    @property
    def bad_outline(self) -> str:
        """Of all bars the part that is bad."""
        return _outline((bar.x, self.height - bar.height + bar.bad, bar.bad) for bar in self.bars)


def judge(servers: Sequence[ServerReport], validities: Sequence[Validity]) -> Verdict:
    """What the servers' states come to, and below it what else somebody is to see to."""
    verdict = _judge_servers(servers)
    due = [validity.owner for validity in validities if not validity.lasts]
    if not due:
        return verdict
    details = [verdict.detail, f"Certificates or CRLs of {', '.join(due)} run out."]
    level = "warn" if verdict.level == "good" else verdict.level
    return Verdict(level, verdict.text, " ".join(filter(None, details)))


def _judge_servers(servers: Sequence[ServerReport]) -> Verdict:
    number = len(servers)
    down = sum(server.state is Health.DOWN for server in servers)
    slow = sum(server.state is Health.SLOW for server in servers)
    if down == number:
        text = "The server is down" if number == 1 else f"All {number} servers are down"
        return Verdict("bad", text, "Messages are refused until one answers a probe.")
    if down:
        text = f"{down} of {number} servers {'is' if down == 1 else 'are'} down"
        return Verdict("warn", text, "The others take all messages.")
    if slow:
        text = f"{slow} of {number} servers {'is' if slow == 1 else 'are'} slow"
        return Verdict("warn", text, "A slow server gets only what no healthy one can take.")
    text = "The server is healthy" if number == 1 else f"All {number} servers are healthy"
    return Verdict("good", text, "")


def list_validities(report: Report, own: Scrape) -> list[Validity]:
    """What this coordinator and its servers use, the latter as they said when last probed."""
    now = own.at

    def describe(
        owner: str, leaf: float | None, ca: float | None, crl: float | None, *, known: bool
    ) -> Validity:
        return Validity(
            owner,
            known,
            _describe_expiry(leaf, now, LEAF_SOON, "expired"),
            _describe_expiry(ca, now, LEAF_SOON, "expired"),
            _describe_expiry(crl, now, CRL_SOON, "overdue"),
        )

    expiries = own.expiries
    validities = [
        describe(
            report.name, expiries.get("cert"), expiries.get("ca"), own.crl_next_update, known=True
        )
    ]
    for server in report.servers:
        told = server.told.expires if server.told else None
        if told is None or told.cert is None:
            validities.append(describe(server.name, None, None, None, known=False))
        else:
            validities.append(describe(server.name, told.cert, told.ca, told.crl, known=True))
    return validities


def draw_rates(steps: Collection[Step]) -> Chart:
    """Messages a second; the upper part of a bar are problems."""
    highest = max((step.rate for step in steps), default=0.0)
    bars = [
        Bar(x, _scale(step.rate, highest), _scale(step.problems, highest))
        for x, step in _from_the_right(steps)
    ]
    return Chart(bars, highest)


def draw_latencies(steps: Collection[Step]) -> Chart:
    """The 99th percentile in milliseconds; no bar where no message was answered."""
    highest = max((step.p99 for step in steps), default=0.0)
    return Chart([Bar(x, _scale(step.p99, highest)) for x, step in _from_the_right(steps)], highest)


def add_filters(app: Flask) -> None:
    """What the template says figures with."""
    app.jinja_env.filters.update(
        plain=escape_text,
        duration=tell_duration,
        rate=tell_rate,
        milliseconds=tell_milliseconds,
        count=lambda value: f"{value or 0:,.0f}",
        clock=lambda at: _utc(at).strftime("%H:%M:%S"),
        day=lambda at: _utc(at).strftime("%Y-%m-%d"),
        iso=lambda at: _utc(at).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


class StatusPage:
    """The page of one worker process. Its figures are those of all of them."""

    def __init__(self, app: Flask, trust_domain: str) -> None:
        add_filters(app)
        self._templates = app.jinja_env
        self._trust_domain = trust_domain
        self._history = History()

    def start(self) -> None:
        """Begin to look. Call it once in the worker."""
        gevent.spawn(self._history.keep_looking)

    def show(self, report: Report, *, refresh: bool) -> Response:
        """The page for what ``/api/status`` says; with ``refresh`` it loads itself again."""
        headers = self._headers
        total = look()
        recent, seconds = self._history.recent(total)
        validities = list_validities(report, total)
        # one report of ten kinds of problem is none of a hundred that never happened
        results = [name for name, count in total.messages.items() if count or name == "ok"]
        text = render_template(
            "status.html",
            trust_domain=self._trust_domain,
            report=report,
            total=total,
            recent=recent,
            seconds=seconds,
            results=sorted(results, key=lambda name: (not is_good(name), name)),
            good=is_good,
            shares=_SHARES,
            rates=draw_rates(self._history.steps),
            latencies=draw_latencies(self._history.steps),
            validities=validities,
            verdict=judge(report.servers, validities),
            refresh=REFRESH_EVERY if refresh else None,
            version=__version__,
            release=release_folder(),
        )
        response = Response(text, content_type="text/html; charset=utf-8")
        response.headers.extend(headers)
        return response

    @cached_property
    def _headers(self) -> dict[str, str]:
        # Beside the event loop, when somebody looks first: no start and no message waits for it.
        return gevent.get_hub().threadpool.apply(self._compile)

    def _compile(self) -> dict[str, str]:
        self._templates.get_template("status.html")
        return {
            "Content-Security-Policy": _name_policy(
                self._templates.get_template("status.css").render()
            ),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }


def is_good(result: str) -> bool:
    """Whether a message with this result is stored."""
    return result in ("ok", "replayed")


def _name_policy(style: str) -> str:
    """Nothing but this style sheet, and no page around this one (CSP level 3)."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _describe_expiry(ends: float | None, now: float, soon: float, over: str) -> Expiry | None:
    if ends is None:
        return None
    level = "bad" if ends <= now else "warn" if ends - now <= soon else "good"
    return Expiry(ends, tell_time_left(ends, now, over), level)


def _outline(bars: Iterable[tuple[int, float, float]]) -> str:
    """Of bars as (x, foot, height); y grows downwards."""
    return "".join(
        f"M{x} {foot:g}v{-height:g}h{_BAR_WIDTH}v{height:g}z" for x, foot, height in bars if height
    )


def _scale(value: float, highest: float) -> float:
    return max(_LEAST_BAR, round(value / highest * _CHART_HEIGHT, 2)) if value > 0 else 0.0


def _from_the_right(steps: Collection[Step]) -> Iterable[tuple[int, Step]]:
    return enumerate(steps, start=_STEPS - len(steps))


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)
