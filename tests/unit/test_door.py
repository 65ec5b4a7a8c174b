"""Decisions at the door: whose connection goes, what is told, how places are shared out."""

from __future__ import annotations

import gc
import logging
import socket
import struct
import time
from collections.abc import Iterator

import gevent.socket
import pytest
from gevent.socket import socket as GeventSocket  # noqa: N812 - a class by its other name
from hypothesis import given
from hypothesis import strategies as st

from sealrelay.door import (
    HANDSHAKES,
    LONGEST_HELLO,
    Crowd,
    Line,
    Places,
    RefusalLog,
    hello_size,
    name_stranger,
    share_places,
)
from sealrelay.worker import Turnstile, await_hello, in_pieces
from tests.support.strangers import client_hello

PEERS = st.sampled_from("abcd")
HELLO = client_hello()


@given(st.lists(st.one_of(PEERS, st.integers(0, 60), st.none())))
def test_crowd_agrees_with_a_plain_list(steps: list[str | int | None]) -> None:
    """A peer's letter adds a thing, a number discards that thing, None takes one in turn."""
    crowd: Crowd[int] = Crowd(few=3)
    plain: list[tuple[str, int]] = []
    number = 0
    for step in steps:
        if isinstance(step, str):
            crowd.add(step, number)
            plain.append((step, number))
            number += 1
        elif isinstance(step, int):
            crowd.discard(step)
            plain = [entry for entry in plain if entry[1] != step]
        elif plain:
            of = crowd.next_peer()
            taken = crowd.take(of)
            mine = [thing for peer, thing in plain if peer == of]
            assert taken == (mine[0] if len(mine) <= 3 else mine[-1])
            plain = [entry for entry in plain if entry[1] != taken]
        sizes = {peer: sum(owner == peer for owner, _ in plain) for peer in "abcd"}
        assert len(crowd) == len(plain)
        assert set(crowd) == {thing for _, thing in plain}
        assert {peer: crowd.count(peer) for peer in "abcd"} == sizes
        for peer in "abcd":
            mine = [thing for owner, thing in plain if owner == peer]
            assert crowd.oldest(peer) == (mine[0] if mine else None)
        oldest = crowd.oldest_of_largest()
        owner = next((peer for peer, thing in plain if thing == oldest), None)
        if plain:
            assert owner is not None
            assert sizes[owner] == max(sizes.values())
            assert crowd.oldest(owner) == oldest
        else:
            assert oldest is None


def test_peers_take_turns_however_many_one_of_them_sends() -> None:
    line: Line[str] = Line(few=50)
    for number in range(100):
        line.add("many", f"many{number}", 100)
    line.add("one", "one0", 100)
    assert [line.take() for _ in range(3)] == ["many99", "one0", "many98"]


def test_a_peer_that_sends_few_is_served_in_the_order_of_their_coming() -> None:
    line: Line[int] = Line()
    for number in range(10):
        line.add("one", number, 1 + number)
    assert [line.take() for _ in range(11)] == [*range(10), None]


@pytest.mark.parametrize("small", [0, 10, 200])
def test_who_has_few_connections_waits_for_those_with_few_only(small: int) -> None:
    """However many addresses there are that have more; of all there are at most two rounds."""
    line = BusyLine({f"small{number}": 1 for number in range(small)})
    for size in range(2, 300):
        line.let_in(f"large{size}", size)
    line.let_in("client", 1)
    assert line.turns_until("client") <= 2 * (small + 1)


@pytest.mark.parametrize("connections", [1, 2, 200])
def test_nobody_waits_for_more_than_two_rounds_of_everyone(connections: int) -> None:
    line = BusyLine({f"other{number}": 1 + number % 2 * 100 for number in range(100)})
    line.let_in("client", connections)
    assert line.turns_until("client") <= 2 * (100 + 1)


class BusyLine:
    """A line in which who had a turn waits for the next one at once."""

    def __init__(self, peers: dict[str, int]) -> None:
        self._line: Line[tuple[str, int]] = Line()
        self._connections: dict[str, int] = {}
        for peer, connections in peers.items():
            self.let_in(peer, connections)

    def let_in(self, peer: str, connections: int) -> None:
        self._connections[peer] = connections
        self._line.add(peer, (peer, 0), connections)

    def turns_until(self, peer: str) -> int:
        """How many turns are given until this peer has one, its own included."""
        for turns in range(1, 2_000):
            taken = self._line.take()
            assert taken is not None
            if taken[0] == peer:
                return turns
            self._line.add(taken[0], (taken[0], turns), self._connections[taken[0]])
        pytest.fail(f"{peer} has no turn")


@given(st.lists(st.one_of(st.tuples(PEERS, st.integers(1, 300)), st.integers(0, 60), st.none())))
def test_everyone_in_a_line_gets_a_turn(steps: list[tuple[str, int] | int | None]) -> None:
    """A peer with so many connections adds a thing, a number discards that, None takes one."""
    line: Line[int] = Line()
    waiting: set[int] = set()
    number = 0
    for step in steps:
        if isinstance(step, tuple):
            line.add(step[0], number, step[1])
            waiting.add(number)
            number += 1
        elif isinstance(step, int):
            line.discard(step)
            waiting.discard(step)
        else:
            taken = line.take()
            assert taken in waiting or (taken is None and not waiting)
            waiting -= {taken}
    assert {line.take() for _ in range(len(waiting))} == waiting
    assert line.take() is None


def test_members_work_goes_before_each_step_of_a_handshake() -> None:
    turnstile = Turnstile(Crowd(), patience=60.0)
    done: list[str] = []

    def shake_hands() -> None:
        turnstile.wait_for_turn("192.0.2.1", goes_on=False)
        done.append("step")

    def work() -> None:
        for _ in range(20):
            done.append("work")
            gevent.sleep(0)

    porter = gevent.spawn(turnstile.run)
    gevent.joinall([gevent.spawn(doing) for doing in (shake_hands, work, shake_hands, shake_hands)])
    porter.kill()
    last = len(done) - done[::-1].index("work")
    assert done[:last].count("step") <= 1
    assert done.count("step") == 3


def test_who_goes_on_with_a_handshake_comes_before_who_begins_one() -> None:
    turnstile = Turnstile(Crowd(), patience=60.0)
    done: list[bool] = []

    def shake_hands(goes_on: bool) -> None:
        turnstile.wait_for_turn("192.0.2.1", goes_on=goes_on)
        done.append(goes_on)

    waiting = [gevent.spawn(shake_hands, goes_on) for goes_on in (False, True, False, True)]
    gevent.sleep(0)
    porter = gevent.spawn(turnstile.run)
    gevent.joinall(waiting)
    porter.kill()
    assert done == [True, True, False, False]


def test_who_has_few_strangers_comes_before_those_who_have_many() -> None:
    strangers: Crowd[object] = Crowd()
    peers = [f"192.0.2.{number}" for number in range(1, 21)]
    for peer in peers:
        for _ in range(100):
            strangers.add(peer, object())
    strangers.add("198.51.100.1", object())
    turnstile = Turnstile(strangers, patience=60.0)
    done: list[str] = []

    def shake_hands(peer: str) -> None:
        turnstile.wait_for_turn(peer, goes_on=False)
        done.append(peer)

    waiting = [gevent.spawn(shake_hands, peer) for peer in [*peers, "198.51.100.1"]]
    gevent.sleep(0)
    porter = gevent.spawn(turnstile.run)
    gevent.joinall(waiting)
    porter.kill()
    assert "198.51.100.1" in done[:2]


def test_members_work_goes_before_each_piece_of_what_is_long() -> None:
    done: list[str] = []

    def look() -> None:
        done.extend(in_pieces(["look"] * 7, 3))

    def work() -> None:
        for _ in range(3):
            done.append("work")
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(look), gevent.spawn(work)])
    assert done == ["look"] * 3 + ["work"] * 3 + ["look"] * 4


def test_members_have_their_time_also_after_something_long() -> None:
    """The event loop looks at the clock once in a turn, which may be long ago."""
    busy = True

    def work() -> None:
        while busy:
            gevent.sleep(0)

    def look() -> float:
        gevent.sleep(0.001)
        pieces = in_pieces(["long", "next"], 1)
        next(pieces)
        time.sleep(0.05)
        since = time.monotonic()
        next(pieces)
        return time.monotonic() - since

    worker, looking = gevent.spawn(work), gevent.spawn(look)
    took = looking.get()
    busy = False
    worker.join()
    assert took > 0.004


def test_letting_members_go_first_leaves_no_cycle_behind() -> None:
    """What finds cycles stops everybody, for longer the more there are."""
    busy = True

    def work() -> None:
        while busy:
            gevent.sleep(0)

    worker = gevent.spawn(work)
    gc.collect()
    assert list(in_pieces([[number] for number in range(8)], 1))[-1] == [7]
    busy = False
    worker.join()
    del worker
    assert gc.collect() == 0


def test_what_is_long_ends_though_members_work_never_does() -> None:
    rounds = 0

    def work() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            gevent.sleep(0)

    working = gevent.spawn(work)
    at_round = [rounds for _ in in_pieces(range(10_000), 3)]
    working.kill()
    assert len(at_round) == 10_000
    assert 2 < len(set(at_round)) < 10


@pytest.mark.parametrize("said", [0, 1, 4])
def test_before_a_records_head_is_there_only_that_is_waited_for(said: int) -> None:
    assert hello_size(HELLO[:said]) == (5 if said else 0)  # nothing: the peer has left


@given(st.integers(5, 400))
def test_a_hello_is_waited_for_in_full(said: int) -> None:
    assert hello_size(HELLO[:said]) == hello_size(HELLO + b"more") == len(HELLO)


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1", b"\x80", b"\x16\x03\x01" + (LONGEST_HELLO - 4).to_bytes(2, "big")],
    ids=["HTTP", "SSL 2", "longer than a record may be"],
)
def test_what_is_no_hello_is_not_waited_for(said: bytes) -> None:
    assert hello_size(said) == 0


class Watched(GeventSocket):
    """A socket that counts how often it is read."""

    reads = 0

    def recv(self, *args: int) -> bytes:
        self.reads += 1
        received: bytes = super().recv(*args)
        return received


@pytest.fixture
def ends() -> Iterator[tuple[GeventSocket, Watched]]:
    """Both ends of a connection: the peer's, and the accepted one."""
    with gevent.socket.create_server(("127.0.0.1", 0)) as listener:
        peer = gevent.socket.create_connection(listener.getsockname())
        client, _ = listener.accept()
        with peer, Watched(fileno=client.detach()) as accepted:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield peer, accepted


def test_a_hello_that_comes_byte_by_byte_wakes_nobody_before_it_is_whole(
    ends: tuple[GeventSocket, Watched],
) -> None:
    peer, accepted = ends
    waiting = gevent.spawn(await_hello, accepted)
    for byte in HELLO[:-1]:
        peer.sendall(bytes([byte]))
        gevent.sleep(0.001)
    assert not waiting.ready()
    peer.sendall(HELLO[-1:])
    waiting.get(timeout=60)
    # At the first byte, with the record's head, with all of it; more often only where this machine
    # is short of memory.
    assert 3 <= accepted.reads < 50
    assert accepted.recv(LONGEST_HELLO) == HELLO
    peer.sendall(b"1")  # from here on every byte counts again
    with gevent.Timeout(60):
        gevent.socket.wait_read(accepted.fileno())


def test_a_hello_that_the_kernel_has_no_room_for_is_waited_for_too(
    ends: tuple[GeventSocket, Watched],
) -> None:
    peer, accepted = ends
    # So small that it is called readable long before, as every buffer is where memory runs short.
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    waiting = gevent.spawn(await_hello, accepted)
    for byte in HELLO[:200]:
        peer.sendall(bytes([byte]))
        gevent.sleep(0.001)
    gevent.sleep(0.5)
    assert not waiting.ready()
    assert 3 <= accepted.reads < 50
    peer.sendall(HELLO[200:])
    waiting.get(timeout=60)
    assert accepted.recv(LONGEST_HELLO) == HELLO


@pytest.mark.parametrize("said", [0, 3, 100])
def test_who_leaves_in_the_middle_of_a_hello_is_not_waited_for(
    ends: tuple[GeventSocket, Watched], said: int
) -> None:
    peer, accepted = ends
    waiting = gevent.spawn(await_hello, accepted)
    peer.sendall(HELLO[:said])
    gevent.sleep(0.01)
    peer.close()
    waiting.get(timeout=60)


def test_a_reset_in_the_middle_of_a_hello_is_told_as_such(
    ends: tuple[GeventSocket, Watched],
) -> None:
    peer, accepted = ends
    waiting = gevent.spawn(await_hello, accepted)
    peer.sendall(HELLO[:100])
    gevent.sleep(0.01)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(ConnectionResetError):
        waiting.get(timeout=60)


def test_few_refusals_are_told_one_by_one_and_a_flood_by_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = RefusalLog(logging.getLogger("door"))
    flood = RefusalLog.LINES + 700
    for _ in range(flood):
        log.note("192.0.2.1", "unknown ca", now=100.0)
    log.note("192.0.2.2", "too slow", now=101.0)
    assert caplog.messages == ["Refused 192.0.2.1: unknown ca"] * RefusalLog.LINES
    caplog.clear()
    log.tick(100.0 + RefusalLog.WINDOW)
    log.tick(101.0 + RefusalLog.WINDOW)
    assert caplog.messages == ["Refused 701 more in the last 10 s: 700 unknown ca, 1 too slow"]
    caplog.clear()
    log.note("192.0.2.3", "too slow", now=200.0)
    assert caplog.messages == ["Refused 192.0.2.3: too slow"]


def test_places_never_need_more_descriptors_than_there_are() -> None:
    assert share_places(10_000, 65_536) == Places(10_000, HANDSHAKES)
    for descriptors in (300, 1024, 4096, 20_000):
        places = share_places(50_000, descriptors)
        assert 0 < places.strangers <= places.members
        assert places.members + places.strangers < descriptors


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_stranger_is_counted_by_what_one_host_may_use(address: str, name: str) -> None:
    assert name_stranger(address) == name
