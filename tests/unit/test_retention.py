"""What is removed may be stored again, so nothing is removed while its token would be accepted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from sealrelay.cli.prune import _remove, end_of_retention
from sealrelay.config import ServerSettings
from sealrelay.seal import MAX_CLOCK_SKEW, Keyring, Token, TokenNotOpened, parse_token
from sealrelay.store import Pruned, Record, SqlStore, open_store
from sealrelay.tls import TlsFiles
from tests.unit.test_store import make_record, url_of

KEY = Fernet.generate_key().decode("ascii")
KEYRING = Keyring([KEY])
START = 1_800_000_000
TTL = 1000


def settings_with(retention: int) -> ServerSettings:
    return ServerSettings(
        name="server1",
        trust_domain="sealrelay.internal",
        bind="127.0.0.1:5001",
        store="sqlite:////nonexistent/messages.db",
        keyrings="keyrings",
        tls=TlsFiles("cert.pem", "key.pem", "ca.pem"),
        token_ttl=TTL,
        retention=retention,
    )


class World:
    """Servers, a pruner and their clock."""

    def __init__(self, store: SqlStore, retention: int) -> None:
        self.now = float(START)
        self._store = store
        self._settings = settings_with(retention)
        self.tokens: list[Token] = []
        self.stored: list[bytes] = []
        """The id of each message that a server took for a new one."""

    def seal(self, skew: int) -> None:
        """A client seals a message; its clock may be wrong."""
        text = Fernet(KEY).encrypt_at_time(b"", int(self.now) + skew).decode("ascii")
        self.tokens.append(parse_token(text))

    def deliver(self, number: int) -> None:
        """Somebody sends one of the tokens, for the first time or again."""
        if not self.tokens:
            return
        token = self.tokens[number % len(self.tokens)]
        try:
            KEYRING.open(token, ttl=self._settings.token_ttl, now=int(self.now))
        except TokenNotOpened:
            return
        record = Record(
            token.message_id,
            "client1",
            token.text,
            token.sealed_at,
            int(self.now * 1000),
            "server1",
        )
        (stored,) = self._store.add([record])
        if not stored.replayed:
            self.stored.append(token.message_id)

    def prune(self) -> None:
        self._store.prune(end_of_retention(self._settings, self.now), 100_000)

    def change(self, **values: int) -> None:
        self._settings = structs.replace(self._settings, **values)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    opened = open_store(url_of(tmp_path_factory.mktemp("retention") / "messages.db"))
    opened.migrate()
    yield opened
    opened.close()


_EDGES = [TTL - 1, TTL, TTL + 1, TTL + MAX_CLOCK_SKEW - 1, TTL + MAX_CLOCK_SKEW]
_STEPS = st.one_of(
    st.tuples(st.just("seal"), st.integers(-2 * MAX_CLOCK_SKEW, 2 * MAX_CLOCK_SKEW)),
    st.tuples(st.just("deliver"), st.integers(0, 5)),
    st.tuples(st.just("pass_time"), st.sampled_from([0.4, 1, 30, 60, *_EDGES])),
    st.tuples(st.just("prune"), st.none()),
)


@settings(max_examples=60)
@given(steps=st.lists(_STEPS, max_size=30), longer=st.integers(1, 3))
def test_no_token_is_stored_twice_whenever_messages_are_removed(
    store: SqlStore, steps: list[tuple[str, int | None]], longer: int
) -> None:
    world = World(store, TTL + MAX_CLOCK_SKEW + longer)  # the least that the settings allow
    for name, value in steps:
        getattr(world, name)(*([] if value is None else [value]))
    assert len(set(world.stored)) == len(world.stored)


@pytest.mark.parametrize(("retention", "times"), [(TTL + MAX_CLOCK_SKEW, 2), (2 * TTL, 1)])
def test_too_short_a_retention_would_let_a_token_come_back(
    store: SqlStore, retention: int, times: int
) -> None:
    """Which is why the settings refuse it: the token below was sealed by a clock that is fast."""
    world = World(store, retention)
    world.seal(MAX_CLOCK_SKEW)
    world.deliver(0)
    world.pass_time(TTL + MAX_CLOCK_SKEW + 0.4)  # in its last second
    world.prune()
    world.deliver(0)
    assert len(world.stored) == times


def test_clock_that_was_set_back_removes_nothing_early(store: SqlStore) -> None:
    store.prune(2**60, 100_000)
    before = end_of_retention(settings_with(2 * TTL), START)
    at = [before - 1, before, START * 1000]
    store.add([replace(make_record(number), received_at=ms) for number, ms in enumerate(at)])
    assert store.prune(end_of_retention(settings_with(2 * TTL), START - 1000), 100).removed == 0
    assert store.prune(before, 100).removed == 1
    assert [record.received_at for record in store.newest()] == at[1:]


@pytest.mark.parametrize("largest", [30, 500])
def test_slow_disk_does_not_make_pruning_remove_few_at_a_time(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """Each transaction waits for the disk once, so many small ones would never keep up."""
    store.prune(2**60, 100_000)
    store.add([make_record(number) for number in range(1000)])
    prune, limits = store.prune, []

    def prune_slowly(before_ms: int, limit: int) -> Pruned:
        limits.append(limit)
        return replace(prune(before_ms, limit), deleting=1.0, holding=0.001)

    monkeypatch.setattr(store, "prune", prune_slowly)
    assert sum(_remove(store, 2**60, largest)) == 1000
    assert set(limits) == {min(100, largest)}


def test_as_many_are_removed_at_a_time_as_take_little_and_others_get_most_of_it(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the commit took, which no smaller number makes shorter."""
    store.prune(2**60, 100_000)
    store.add([make_record(number) for number in range(1000)])
    prune, limits = store.prune, []
    pauses: list[float] = []

    def prune_slowly(before_ms: int, limit: int) -> Pruned:
        limits.append(limit)
        return replace(prune(before_ms, limit), deleting=0.001, holding=0.5)

    monkeypatch.setattr(store, "prune", prune_slowly)
    monkeypatch.setattr("sealrelay.cli.prune.time.sleep", pauses.append)
    assert sum(_remove(store, 2**60, 300)) == 1000
    assert limits == [100, 151, 227, 300, 300]
    assert pauses == [2.0] * 4


def test_longer_token_ttl_needs_a_longer_retention_first(store: SqlStore) -> None:
    """What docs/store.md says of it: else messages that are removed already would come back."""
    for wait, times in [(0, 2), (3 * TTL + MAX_CLOCK_SKEW - 2 * TTL, 1)]:
        store.prune(2**60, 100_000)
        world = World(store, 2 * TTL)
        world.seal(MAX_CLOCK_SKEW)
        world.deliver(0)
        world.pass_time(2 * TTL + 1)
        world.prune()
        world.change(retention=4 * TTL)
        world.pass_time(wait)
        world.prune()
        world.change(token_ttl=3 * TTL)
        world.deliver(0)
        assert len(world.stored) == times
