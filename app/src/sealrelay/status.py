"""Asks every coordinator and server how it is, and makes one picture of the answers.

What a server's state is, the coordinators decide: they see whether messages get stored there.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import msgspec

from sealrelay.config import OperatorSettings, load_tls, split_url
from sealrelay.dispatch.decisions import Health
from sealrelay.dispatch.observer import Report, ServerReport
from sealrelay.figures import Scrape, read_scrape
from sealrelay.identity import Identity, IdentityRefused, Role
from sealrelay.reload import Reloadable
from sealrelay.tls import describe_tls_error, send_close_notify

_TIMEOUT = 3.0
"""Seconds for one part of the deployment to connect, and to answer each question."""

State = Literal["healthy", "slow", "down", "unreachable", "unknown"]
_WORST_FIRST: tuple[State, ...] = ("down", "unreachable", "unknown", "slow", "healthy")


class Row(msgspec.Struct):
    """One coordinator or server. Times: seconds since the epoch; None: not known."""

    role: Role
    name: str
    """Empty for a coordinator that has never answered: its certificate says its name."""
    url: str
    state: State
    reason: str = ""
    """Why it isn't healthy."""
    since: float | None = None
    messages_per_second: float | None = None
    problems_per_second: float | None = None
    """Messages that were neither stored nor there already."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    waiting: int | None = None
    """Messages in a coordinator's queue."""
    store_bytes: int | None = None
    last_failure: str = ""
    last_failure_at: float | None = None
    certificate_expires: float | None = None
    crl_next_update: float | None = None
    """When the next CRL is due; None also where there are none."""
    version: str = ""


class Picture(msgspec.Struct):
    """The whole deployment at one time."""

    trust_domain: str
    at: float
    """Seconds since the epoch."""
    window: float | None
    """Seconds that rates and latencies are about; None: since each service was started."""
    healthy: bool
    rows: list[Row]


class Watch:
    """Looks at a deployment again and again."""

    def __init__(self, settings: OperatorSettings) -> None:
        """Raises TlsRefused."""
        self._settings = settings
        self._files = Reloadable("TLS files", settings.tls.listed, lambda: load_tls(settings))
        self._before: dict[str, Scrape] = {}
        self._names: dict[str, str] = {}  # of coordinators, by URL, once they have answered
        self._looked_at: float | None = None

    def look(self) -> Picture:
        """The picture of now. Whoever cannot be asked is a row like the others."""
        settings = self._settings
        self._files.look()
        self._tls = self._files.value
        self._context = self._tls.make_client_context(check_hostname=False)
        expected = [
            *((url, Role.COORDINATOR, None) for url in settings.coordinators),
            *((server.url, Role.SERVER, server.name) for server in settings.servers),
        ]
        with ThreadPoolExecutor(min(32, len(expected))) as pool:
            answers = list(pool.map(lambda part: self._ask(*part), expected))
        now = time.time()
        coordinators = answers[: len(settings.coordinators)]
        opinions = [answer.report for answer in coordinators if answer.report is not None]
        rows = [self._describe_coordinator(answer) for answer in coordinators]
        for address, answer in zip(settings.servers, answers[len(coordinators) :], strict=True):
            rows.append(self._describe_server(address.name, answer, opinions))
        window = None if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        healthy = all(row.state == "healthy" for row in rows)
        return Picture(settings.trust_domain, now, window, healthy, rows)

    def _ask(self, url: str, role: Role, name: str | None) -> _Answer:
        host, port = split_url(url)
        connection = http.client.HTTPSConnection(
            host, port, context=self._context, timeout=_TIMEOUT
        )
        try:
            connection.connect()
            peer = self._tls.identify(connection.sock)
            trusted = peer.trust_domain == self._settings.trust_domain and peer.role is role
            if not trusted or (name is not None and peer.name != name):
                raise IdentityRefused(f"{peer} answers there")
            scrape = read_scrape(_get(connection, "/metrics").decode(), time.time())
            report = None
            if role is Role.COORDINATOR:
                report = msgspec.json.decode(_get(connection, "/api/status"), type=Report)
            return _Answer(url, peer, scrape, report)
        except ssl.SSLError as error:
            return _Answer(url, failure=describe_tls_error(error))
        except OSError as error:
            return _Answer(url, failure=error.strerror or str(error) or type(error).__name__)
        except IdentityRefused as error:
            return _Answer(url, failure=str(error))
        except _Refused as error:
            return _Answer(url, failure=str(error))
        except http.client.HTTPException:
            return _Answer(url, failure="closed the connection without an answer")
        except (msgspec.MsgspecError, ValueError, KeyError):
            return _Answer(url, failure="answered in an unknown form")
        finally:
            if connection.sock is not None:
                send_close_notify(connection.sock)
            connection.close()

    def _describe_coordinator(self, answer: _Answer) -> Row:
        if answer.report is None:
            name = self._names.get(answer.url, "")
            return Row(Role.COORDINATOR, name, answer.url, "unreachable", answer.failure)
        self._names[answer.url] = answer.report.name
        row = Row(
            Role.COORDINATOR,
            answer.report.name,
            answer.url,
            "healthy",
            since=answer.report.started,
            waiting=answer.report.waiting,
        )
        self._fill_in(row, answer)
        return row

    def _describe_server(self, name: str, answer: _Answer, opinions: Sequence[Report]) -> Row:
        row = Row(Role.SERVER, name, answer.url, "unknown", "no coordinator can be asked about it")
        if opinions:
            row.reason = "no coordinator uses it"
        judged = [
            (report.name, server)
            for report in opinions
            for server in report.servers
            if server.name == name
        ]
        if judged:
            judge, worst = min(judged, key=lambda pair: _rank(pair[1]))
            row.state, row.reason, row.since = worst.state.value, worst.reason, worst.since
            if len(opinions) > 1 and worst.state is not Health.HEALTHY:
                row.reason += f", says {judge}"
            latest = max((server for _, server in judged), key=lambda each: each.last_failure_at)
            if latest.last_failure:
                row.last_failure, row.last_failure_at = latest.last_failure, latest.last_failure_at
        if answer.scrape is not None:
            self._fill_in(row, answer)
        elif row.state != "down":
            row.state, row.reason, row.since = "unreachable", answer.failure, None
        return row

    def _fill_in(self, row: Row, answer: _Answer) -> None:
        scrape = answer.scrape
        assert scrape is not None
        recent, seconds = scrape.since(self._before.get(answer.url))
        self._before[answer.url] = scrape
        if seconds > 0:
            row.messages_per_second = recent.answered / seconds
            row.problems_per_second = recent.problems / seconds
        row.p50_ms, row.p99_ms = recent.find_latency(0.5), recent.find_latency(0.99)
        row.certificate_expires = scrape.expires
        row.crl_next_update = scrape.crl_next_update
        row.store_bytes = scrape.store_bytes
        row.version = scrape.version


class _Refused(Exception):
    """An answer, but not to the question."""


@dataclass
class _Answer:
    """What one part of the deployment said, or why it did not."""

    url: str
    identity: Identity | None = None
    scrape: Scrape | None = None
    report: Report | None = None
    failure: str = ""


def _get(connection: http.client.HTTPSConnection, path: str) -> bytes:
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise _Refused(f"answered {response.status} to {path}")
    return body


def _rank(server: ServerReport) -> tuple[int, float]:
    return _WORST_FIRST.index(server.state.value), server.since
