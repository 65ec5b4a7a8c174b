"""Decisions at the door: whose connection goes, what is told, how places are shared out."""

from __future__ import annotations

import gc
import logging
import socket
import struct
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
        else:
            taken = crowd.take_in_turn()
            owner = next((peer for peer, thing in plain if thing == taken), None)
            mine = [thing for peer, thing in plain if peer == owner]
            assert taken == (None if not mine else mine[0] if len(mine) <= 3 else mine[-1])
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
    crowd: Crowd[str] = Crowd(few=50)
    for number in range(100):
        crowd.add("many", f"many{number}")
    crowd.add("one", "one0")
    assert [crowd.take_in_turn() for _ in range(3)] == ["many99", "one0", "many98"]


def test_a_peer_that_sends_few_is_served_in_the_order_of_their_coming() -> None:
    crowd: Crowd[str] = Crowd(few=3)
    for number in range(3):
        crowd.add("one", f"one{number}")
    assert [crowd.take_in_turn() for _ in range(4)] == ["one0", "one1", "one2", None]


def test_who_has_few_connections_does_not_wait_for_all_who_have_many() -> None:
    line: Line[str] = Line()
    for number in range(20):
        line.add(f"many{number}", f"many{number}", 150 + number)
    line.add("few", "few0", 1)
    line.add("few", "few1", 2)
    line.add("few", "few2", 3)
    first = [line.take() for _ in range(6)]
    assert {"few0", "few1", "few2"} < set(first)


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
    turnstile = Turnstile(patience=60.0)
    done: list[str] = []

    def shake_hands() -> None:
        turnstile.wait_for_turn("192.0.2.1", 1, goes_on=False)
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
    turnstile = Turnstile(patience=60.0)
    done: list[bool] = []

    def shake_hands(goes_on: bool) -> None:
        turnstile.wait_for_turn("192.0.2.1", 1, goes_on=goes_on)
        done.append(goes_on)

    waiting = [gevent.spawn(shake_hands, goes_on) for goes_on in (False, True, False, True)]
    gevent.sleep(0)
    porter = gevent.spawn(turnstile.run)
    gevent.joinall(waiting)
    porter.kill()
    assert done == [True, True, False, False]


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
    assert accepted.reads == 3  # at the first byte, with the record's head, with all of it
    assert accepted.recv(LONGEST_HELLO) == HELLO
    peer.sendall(b"1")  # from here on every byte counts again
    with gevent.Timeout(60):
        gevent.socket.wait_read(accepted.fileno())


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
