"""Counting in plain numbers, and one picture of what several workers think of the servers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sealrelay import metrics
from sealrelay.dispatch.decisions import Attempt, Dispatch, Health, Lane, Limits, Message
from sealrelay.dispatch.observer import Observer, Report, ServerReport, merge_reports
from sealrelay.identity import Role
from sealrelay.processes import read_reports, share_folder, shared_folder
from sealrelay.wire import Expiries, HealthAnswer
from tests.support.metrics import Metrics


def figures(role: Role = Role.COORDINATOR) -> Metrics:
    return Metrics(metrics.scrape(role).decode())


def test_counts_and_values_are_published_exactly() -> None:
    before = figures()
    metrics.MESSAGES.add("ok")
    metrics.MESSAGES.add("ok", amount=4)
    metrics.MESSAGES.add("never", amount=0)
    metrics.MESSAGE_SECONDS.add(0.002)  # a bucket's upper bound belongs to it
    metrics.MESSAGE_SECONDS.add(0.0021, 3)
    metrics.MESSAGE_SECONDS.add(99.0)
    after = figures()
    assert after.grown(before, "sealrelay_messages_total", result="ok") == 5
    assert after("sealrelay_messages_total", result="never") == 0
    name = "sealrelay_message_seconds"
    grown = {
        bound: after.grown(before, f"{name}_bucket", le=bound)
        for bound in ("0.0015", "0.002", "0.003", "10.0", "+Inf")
    }
    assert grown == {"0.0015": 0, "0.002": 1, "0.003": 4, "10.0": 4, "+Inf": 5}
    assert after.grown(before, f"{name}_count") == 5
    assert after.grown(before, f"{name}_sum") == pytest.approx(0.002 + 3 * 0.0021 + 99)
    assert figures().grown(after, f"{name}_count") == 0


def test_scrape_of_one_service_leaves_out_what_the_other_counts() -> None:
    metrics.ATTEMPTS.add("server1", "ok")
    metrics.COMMIT_MESSAGES.add(3)
    for role in (Role.COORDINATOR, Role.SERVER):
        known = {n for n, metric in metrics.DEFINITIONS.items() if role in metric.services}
        assert figures(role).names <= known
    assert "sealrelay_attempts_total" in figures(Role.COORDINATOR).names
    assert "sealrelay_commit_messages" in figures(Role.SERVER).names


LIMITS = Limits(
    max_batch=8,
    max_batch_bytes=1000,
    max_waiting=100,
    max_waiting_bytes=10_000,
    patience=1.0,
    hedge_floor=0.05,
    hedge_ceiling=0.15,
    retry_share=0.2,
)
URLS = {"one": "https://127.0.0.1:1", "two": "https://127.0.0.1:2"}


@pytest.fixture
def dispatch() -> Dispatch:
    return Dispatch(URLS, LIMITS)


@pytest.fixture
def observer(dispatch: Dispatch) -> Observer:
    return Observer("coordinator1", URLS, dispatch, 100, 1000.0, lanes=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with share_folder():
        made = shared_folder()
        assert made is not None
        yield made


def test_folder_is_private_and_goes_away(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent == Path(os.environ["RUNTIME_DIRECTORY"])


def test_folder_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    for _ in range(2):
        with share_folder():
            (child,) = tmp_path.iterdir()
            assert shared_folder() == child
            assert not list(child.iterdir())
            (child / "figures.db").touch()
        assert not list(tmp_path.iterdir())
        assert shared_folder() is None


def seen(observer: Observer) -> dict[str, ServerReport]:
    observer.publish()
    return {server.name: server for server in merge_reports(read_reports()).servers}


def send(dispatch: Dispatch, observer: Observer, server: str) -> Attempt:
    message = Message(b"id", "client1", "token", deadline=100.0)
    dispatch.enqueue(message, 0.0)
    dispatch.lane_idle(Lane(server))
    attempt = dispatch.next_attempt(0.0)
    assert attempt is not None
    observer.sent(attempt)
    return attempt


@pytest.mark.usefixtures("folder")
def test_reason_and_last_failure_outlive_what_came_between(
    dispatch: Dispatch, observer: Observer
) -> None:
    before = figures()
    attempt = send(dispatch, observer, "one")
    dispatch.fail(attempt, 1.0, timed_out=True)
    observer.failed(attempt, "no answer within 2.0 s", timed_out=True)
    one = seen(observer)["one"]
    assert (one.state, one.reason) == (Health.DOWN, "no answer within 2.0 s")
    assert figures().grown(before, "sealrelay_attempts_total", server="one", result="timed-out")
    assert figures().grown(before, "sealrelay_ejections_total", server="one", reason="attempt")

    dispatch.eject("one", 2.0)
    observer.probe_failed("one", "Connection refused")
    now = seen(observer)["one"]
    assert (now.reason, now.since) == ("Connection refused", one.since)
    assert not figures().grown(before, "sealrelay_ejections_total", server="one", reason="probe")

    dispatch.readmit("one", 3.0, quick=False)
    observer.readmitted("one")
    now = seen(observer)["one"]
    assert (now.state, now.reason) == (Health.SLOW, "back, but slow to answer a probe")
    dispatch.readmit("one", 4.0, quick=True)
    observer.readmitted("one")
    now = seen(observer)["one"]
    assert (now.state, now.reason, now.last_failure) == (Health.HEALTHY, "", "Connection refused")
    assert seen(observer)["two"].state is Health.HEALTHY


@pytest.mark.usefixtures("folder")
def test_changes_are_told_after_the_server_is_back(dispatch: Dispatch, observer: Observer) -> None:
    attempt = send(dispatch, observer, "one")
    dispatch.fail(attempt, 1.0, timed_out=True)
    observer.failed(attempt, "no answer within 2.0 s", timed_out=True)
    dispatch.eject("one", 2.0)
    observer.probe_failed("one", "Connection refused")  # it was down before
    for quick in (False, True):
        dispatch.readmit("one", 3.0, quick=quick)
        observer.readmitted("one")
    servers = seen(observer)
    assert [(one.was, one.state, one.reason) for one in servers["one"].changes] == [
        (Health.HEALTHY, Health.DOWN, "no answer within 2.0 s"),
        (Health.DOWN, Health.SLOW, "back, but slow to answer a probe"),
        (Health.SLOW, Health.HEALTHY, ""),
    ]
    times = [one.at for one in servers["one"].changes]
    assert times == sorted(times)
    assert times[-1] == servers["one"].since
    assert servers["two"].changes == []


@pytest.mark.usefixtures("folder")
def test_no_more_changes_are_told_than_the_last_256_of_ten_minutes(
    dispatch: Dispatch, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for number in range(200):
        dispatch.eject("one", 2.0)
        observer.probe_failed("one", str(number))
        dispatch.readmit("one", 3.0, quick=True)
        observer.readmitted("one")
    changes = seen(observer)["one"].changes
    assert len(changes) == 256
    assert [one.reason for one in changes[-2:]] == ["199", ""]
    now += 599
    assert seen(observer)["one"].changes == changes
    now += 2
    assert seen(observer)["one"].changes == []


@pytest.mark.usefixtures("folder")
def test_waiting_messages_are_reported(dispatch: Dispatch, observer: Observer) -> None:
    for number in range(3):
        dispatch.enqueue(Message(bytes([number]), "client1", "token", 100.0), 0.0)
    observer.publish()
    assert merge_reports(read_reports()).waiting == 3
    assert figures()("sealrelay_queue_messages") == 3
    assert figures()("sealrelay_queue_bytes") == 15
    assert figures()("sealrelay_queue_limit_messages") == 100


@pytest.mark.usefixtures("folder")
def test_lanes_and_what_a_server_says_of_itself_are_reported(
    dispatch: Dispatch, observer: Observer
) -> None:
    before = seen(observer)["one"]
    assert (before.lanes, before.busy_lanes, before.told) == (2, 2, None)  # none has begun
    for _ in range(2):
        dispatch.lane_idle(Lane("one"))
    assert seen(observer)["one"].busy_lanes == 0
    dispatch.enqueue(Message(b"id", "client1", "token", deadline=100.0), 0.0)
    assert dispatch.next_attempt(0.0) is not None
    assert seen(observer)["one"].busy_lanes == 1
    health = HealthAnswer("0.1.0", 5.0, Expiries(cert=7.0, crl=8.0))
    observer.told("one", health)
    assert seen(observer)["one"].told == health
    assert seen(observer)["two"].told is None


def report(**server: object) -> bytes:
    values = {"name": "one", "url": URLS["one"], "state": "healthy", **server}
    return msgspec.json.encode(
        {"name": "c", "started": 1.0, "workers": 1, "waiting": 2, "servers": [values]}
    )


def merged(*reports: bytes) -> tuple[Report, ServerReport]:
    whole = merge_reports(reports)
    return whole, whole.servers[0]


def test_worst_state_of_all_workers_counts() -> None:
    healthy = report(since=1.0, last_failure="new", last_failure_at=9.0)
    slow = report(state="slow", reason="overtaken by two", since=2.0)
    down = report(state="down", reason="refused", since=3.0, last_failure="x", last_failure_at=3.0)
    for order in ((healthy, slow, down), (down, healthy, slow), (slow, down, healthy)):
        whole, server = merged(*order)
        assert (whole.workers, whole.waiting) == (3, 6)
        assert (server.state, server.reason, server.since) == (Health.DOWN, "refused", 3.0)
        assert (server.last_failure, server.last_failure_at) == ("new", 9.0)
    _, server = merged(healthy, slow)
    assert (server.state, server.reason) == (Health.SLOW, "overtaken by two")


def test_changes_of_all_workers_are_told_in_the_order_of_time() -> None:
    down, back = (
        {"at": at, "was": was, "state": state, "reason": ""}
        for at, was, state in ((1.0, "healthy", "down"), (3.0, "down", "healthy"))
    )
    one, two = report(changes=[down, back]), report(changes=[{**down, "at": 2.0}])
    for order in ((one, two), (two, one)):
        assert [change.at for change in merged(*order)[1].changes] == [1.0, 2.0, 3.0]


def test_lanes_of_all_workers_are_added_up() -> None:
    told = {"version": "0.1.0", "started": 5.0, "expires": {"cert": 7.0}}
    one, two = report(lanes=4, busy_lanes=1), report(lanes=4, busy_lanes=3, told=told)
    for order in ((one, two), (two, one)):
        _, server = merged(*order)
        assert (server.lanes, server.busy_lanes) == (8, 4)
        assert server.told == HealthAnswer("0.1.0", 5.0, Expiries(cert=7.0))


def test_of_two_workers_that_agree_the_one_that_saw_it_first_is_believed() -> None:
    first = report(state="down", reason="reset", since=5.0)
    second = report(state="down", reason="refused", since=6.0)
    assert merged(first, second)[1].since == merged(second, first)[1].since == 5.0
