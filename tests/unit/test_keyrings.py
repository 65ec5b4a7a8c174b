"""Keyring files: no key is dropped while a message may need it, whatever happens in between."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from sealrelay import keyrings
from sealrelay.config import load_keyrings
from sealrelay.keyrings import (
    Key,
    forget_keys,
    format_keys,
    merge_keys,
    parse_keys,
    read_folder,
    read_keys,
    retire_keys,
    split_due,
    update_keyring,
)
from sealrelay.seal import MAX_CLOCK_SKEW, KeyringError, generate_keyring, parse_keyring
from tests.support.command import Result, run_main

NOW = 1_800_000_000
TTL = 1000
AFTER = TTL + MAX_CLOCK_SKEW
"""What the playbooks wait for, without their margin."""
A, B, C, D = (Fernet.generate_key().decode("ascii") for _ in range(4))
_HEADER = "# sealrelay payload keys, newest first\n"


def text_of(*keys: str, next_key: str = "") -> str:
    """What the playbook gives a server: the client's keys, and the next one if there is one."""
    return "\n".join([*keys, *(["# next", next_key] if next_key else []), ""])


def test_keyring_says_what_became_of_each_key() -> None:
    text = f"{_HEADER}{A}\n# next\n{B}\n# superseded 2027-01-15T08:00:00Z\n{C}\n{D}\n"
    keys = [Key(A), Key(B, is_next=True), Key(C, NOW), Key(D)]
    assert parse_keys(text) == keys
    assert format_keys(keys) == text


def test_older_releases_read_it_too() -> None:
    text = format_keys([Key(A), Key(B, is_next=True), Key(C, NOW)])
    keyring = parse_keyring(text.splitlines())
    for key in (A, B, C):
        token = parse_keyring([key]).seal(b"x")
        assert keyring.open(token) == b"x"
    assert parse_keyring([A]).open(keyring.seal(b"y")) == b"y"


def test_what_keygen_makes_is_a_keyring_already() -> None:
    text = generate_keyring()
    assert format_keys(merge_keys([], parse_keys(text), [], NOW)) == text


@pytest.mark.parametrize(
    "text",
    ["not a key", f"{A} {B}", A[:-2], f"# superseded yesterday\n{A}", f"{A}\n\N{BULLET}"],
    ids=["text", "two on a line", "cut short", "no time", "beside a key"],
)
def test_what_is_no_keyring_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(KeyringError) as refused:
        parse_keys(text)
    assert A[:10] not in str(refused.value)


def test_no_key_shows_itself() -> None:
    assert A not in repr(Key(A, NOW))


def test_next_key_is_known_and_neither_newest_nor_superseded() -> None:
    learned = merge_keys([Key(A)], [Key(A), Key(B, is_next=True)], [], NOW)
    assert learned == [Key(A), Key(B, is_next=True)]


def test_key_is_superseded_when_the_client_has_left_it() -> None:
    learned = [Key(A), Key(B, is_next=True)]
    ordered = merge_keys(learned, [Key(B)], [], NOW)
    assert ordered == [Key(B), Key(A, NOW)]
    assert merge_keys(ordered, [Key(B)], [], NOW + 500) == ordered, "and stays so since then"
    assert merge_keys(ordered, [Key(B), Key(A)], [], NOW + 500) == ordered, "in its file or not"


def test_next_key_that_was_taken_back_is_superseded() -> None:
    assert merge_keys([Key(A), Key(B, is_next=True)], [Key(A)], [], NOW) == [Key(A), Key(B, NOW)]


def test_key_that_is_used_again_is_the_newest_again() -> None:
    assert merge_keys([Key(B), Key(A, NOW)], [Key(A)], [], NOW + 5) == [Key(A), Key(B, NOW + 5)]


def test_retired_key_in_the_clients_file_stays_retired() -> None:
    assert merge_keys([Key(B)], [Key(B), Key(A)], [Key(A, NOW)], NOW) == [Key(B)]
    used = merge_keys([Key(B)], [Key(A)], [Key(A, NOW)], NOW)
    assert used == [Key(A), Key(B, NOW)], "unless the client seals with it"


def test_new_server_learns_from_another_ones_keyring_since_when_keys_are_old() -> None:
    told = parse_keys(text_of(B, next_key=C) + format_keys([Key(A), Key(B), Key(D, NOW - 100)]))
    assert merge_keys([], told, [], NOW) == [
        Key(B),
        Key(C, is_next=True),
        Key(A, NOW),
        Key(D, NOW - 100),
    ]


def test_the_newest_and_the_next_are_never_due() -> None:
    keys = [Key(A, NOW - 5 * TTL), Key(B, is_next=True), Key(C, NOW - 1), Key(D, NOW)]
    assert split_due(keys, NOW) == (keys[:2], keys[2:])
    assert split_due(keys, NOW - 1) == ([keys[0], keys[1], keys[3]], [keys[2]])


class _Killed(BaseException):
    """What a process does not live to see."""


class World:
    """A client, a server's host, its store, and a clock. Keys are told apart by themselves."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.folder, self.keyring = folder, folder / "client1.keys"
        self._keys: dict[str, str] = {}
        self.sealing = self._make_key()
        self.next: str | None = None
        self.learned: str | None = None
        self.tokens: list[tuple[str, int]] = []
        """The key of each, and when it was sealed as the client's clock has it."""
        self.stored: list[str] = []
        """The key that each stored message is sealed with."""
        self.merge()

    def _make_key(self) -> str:
        return Fernet.generate_key().decode("ascii")

    def stage(self) -> None:
        self.next = self.next or self._make_key()

    def merge(self) -> None:
        text = text_of(self.sealing, next_key=self.next or "")
        update_keyring(self.keyring, text, self.now, None, dry=False)
        self.learned = self.next

    def switch(self) -> None:
        if self.next is not None and self.next == self.learned:
            self.sealing, self.next = self.next, None

    def take_back(self) -> None:
        self.next = None

    def seal(self, skew: int) -> None:
        self.tokens.append((self.sealing, self.now + skew))

    def deliver(self) -> None:
        opens = {key.text for key in read_keys(self.keyring)}
        self.stored += [key for key, _ in self.acceptable() if key in opens]

    def acceptable(self) -> list[tuple[str, int]]:
        return [token for token in self.tokens if token[1] + TTL >= self.now]

    def retire(self) -> None:
        retire_keys(self.keyring, self.now - AFTER, dry=False)

    def reseal(self) -> None:
        """With --forget: what the command does, on a store that is a list of keys."""
        keys = read_folder(self.folder)["client1"]
        known = {key.text for key in (*keys.in_use, *keys.retired)}
        current = {key.text for key in keys.in_use if key.superseded_at is None}
        assert known.issuperset(self.stored)
        self.stored = [key if key in current else keys.in_use[0].text for key in self.stored]
        forget_keys(self.keyring, keys.retired)

    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    def check(self) -> None:
        keys = read_folder(self.folder)["client1"]
        in_use = {key.text for key in keys.in_use}
        assert in_use.issuperset(key for key, _ in self.acceptable())
        assert (in_use | {key.text for key in keys.retired}).issuperset(self.stored)
        assert self.sealing in in_use
        load_keyrings(self.folder)


_STEPS = st.one_of(
    st.tuples(st.sampled_from(["stage", "merge", "switch", "deliver", "retire", "reseal"])),
    st.tuples(st.just("take_back")),
    st.tuples(st.just("seal"), st.integers(-MAX_CLOCK_SKEW, MAX_CLOCK_SKEW)),
    st.tuples(st.just("pass_time"), st.sampled_from([1, 60, TTL - 1, TTL, TTL + 1, AFTER])),
)
_DEATHS = st.none() | st.integers(0, 5)


@settings(max_examples=150)
@given(st.lists(st.tuples(_STEPS, _DEATHS), max_size=40))
def test_no_key_is_lost_that_a_stored_or_acceptable_token_needs(
    steps: list[tuple[tuple[str, ...], int | None]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        world = World(Path(folder))
        for (name, *values), dies_at in steps:
            with _Death(dies_at):
                getattr(world, name)(*values)
            world.check()


class _Death:
    """Ends what is done inside before it takes its so many-th step on the disk."""

    def __init__(self, step: int | None) -> None:
        self._left = step

    def __enter__(self) -> None:
        self._patches = [
            mock.patch.object(Path, name, self._around(getattr(Path, name)))
            for name in ("replace", "unlink")
        ]
        for patch in self._patches:
            patch.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for patch in self._patches:
            patch.stop()
        return kind is _Killed

    def _around(self, step: object) -> object:
        def run(*arguments: object, **options: object) -> object:
            if self._left is not None:
                if self._left == 0:
                    raise _Killed
                self._left -= 1
            return step(*arguments, **options)  # type: ignore[operator]

        return run


def test_killed_between_its_two_files_a_key_is_in_both_and_the_next_call_finishes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "client1.keys"
    path.write_text(format_keys([Key(A), Key(B, NOW)]))
    sync, synced = keyrings._sync_folder, []

    def sync_once(folder: Path) -> None:
        sync(folder)
        synced.append(folder)
        raise _Killed

    with mock.patch.object(keyrings, "_sync_folder", sync_once), suppress(_Killed):
        retire_keys(path, NOW, dry=False)
    assert len(synced) == 1
    assert read_keys(tmp_path / "client1.retired") == [Key(B, NOW)]
    assert read_keys(path) == [Key(A), Key(B, NOW)]
    assert retire_keys(path, NOW, dry=False) == (1, [])
    assert read_keys(tmp_path / "client1.retired") == [Key(B, NOW)]
    assert read_keys(path) == [Key(A)]


def test_what_opens_stored_messages_takes_retired_keys_and_what_takes_messages_in_does_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "client1.keys").write_text(format_keys([Key(B)]))
    (tmp_path / "client1.retired").write_text(format_keys([Key(A, NOW)]))
    (tmp_path / "client2.retired").write_text(format_keys([Key(C, NOW)]))
    tokens = [parse_keyring([key]).seal(b"x") for key in (A, B)]
    reading = read_folder(tmp_path)
    assert [reading["client1"].open_all().open(token) for token in tokens] == [b"x", b"x"]
    assert reading["client2"].newest is None
    intake = load_keyrings(tmp_path)
    assert set(intake) == {"client1"}
    assert intake["client1"].open(tokens[1]) == b"x"
    with pytest.raises(ValueError, match="does not open"):
        intake["client1"].open(tokens[0])


def test_forgetting_leaves_keys_that_were_retired_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "client1.keys"
    path.write_text(format_keys([Key(A), Key(C, NOW)]))
    retired = tmp_path / "client1.retired"
    retired.write_text(format_keys([Key(B, NOW)]))
    seen = read_folder(tmp_path)["client1"].retired
    retire_keys(path, NOW, dry=False)
    assert forget_keys(path, seen) == 1
    assert read_keys(retired) == [Key(C, NOW)]
    assert forget_keys(path, [Key(C)]) == 1
    assert not retired.exists()
    assert forget_keys(path, [Key(C)]) == 0


# --- the commands


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "client1.keys"
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".new")] == []


def merge(path: Path, text: str, *options: str) -> Result:
    result = run_main("keyring", "merge", *options, str(path), stdin=text.encode())
    for key in (A, B, C, D):
        assert key not in result.out + result.err
    return result


def test_merge_says_whether_it_changed_anything(path: Path) -> None:
    assert merge(path, text_of(A)) == Result(0, "written\n", "")
    assert path.read_text() == f"{_HEADER}{A}\n"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert merge(path, text_of(A)) == Result(0, "unchanged\n", "")
    assert merge(path, text_of(A, next_key=B), "--dry-run") == Result(0, "written\n", "")
    assert path.read_text() == f"{_HEADER}{A}\n"
    assert merge(path, text_of(A, next_key=B)) == Result(0, "written\n", "")
    before = int(time.time())
    assert merge(path, text_of(B)) == Result(0, "written\n", "")
    newest, superseded = read_keys(path)
    assert (newest, superseded.text) == (Key(B), A)
    assert superseded.superseded_at is not None
    assert before <= superseded.superseded_at <= time.time()


def test_merge_sees_to_owner_group_and_mode(path: Path) -> None:
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    options = ("--owner", user, "--group", group, "--mode", "0640")
    assert merge(path, text_of(A), *options).out == "written\n"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert merge(path, text_of(A), *options).out == "unchanged\n"
    path.chmod(0o644)
    assert merge(path, text_of(A), *options).out == "written\n"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert merge(path, text_of(B)).out == "written\n"
    assert path.stat().st_mode & 0o7777 == 0o640, "what is not given stays as it is"


@pytest.mark.parametrize(
    ("option", "value"), [("--owner", "nobody-of-this-name"), ("--group", "-"), ("--mode", "rw")]
)
def test_merge_refuses_what_nobody_can_own(path: Path, option: str, value: str) -> None:
    assert merge(path, text_of(A), option, value).code == 2
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "no key\n", f"{A}\nno key\n"],
    ids=["empty", "comment", "text", "beside a key"],
)
def test_merge_of_what_is_no_keyring_leaves_the_file_as_it_is(path: Path, text: str) -> None:
    merge(path, text_of(A))
    result = merge(path, text)
    assert (result.code, result.out) == (8, "")
    assert result.err.startswith(f"sealrelay: the keys for {path} are not a keyring: ")
    assert path.read_text() == f"{_HEADER}{A}\n"


def test_merge_into_what_is_no_keyring_says_so(path: Path) -> None:
    path.write_text("something else\n")
    result = merge(path, text_of(A))
    assert result.code == 8
    assert result.err.startswith(f"sealrelay: {path}: not a keyring: ")
    assert path.read_text() == "something else\n"


def test_merge_says_why_it_cannot_write(tmp_path: Path) -> None:
    result = merge(tmp_path / "missing" / "client1.keys", text_of(A))
    assert (result.code, result.out) == (8, "")
    assert "missing: keyrings: No such file or directory" in result.err


def test_retire_moves_what_is_due_and_says_when_the_rest_is(path: Path) -> None:
    now = int(time.time())
    keys = [Key(A), Key(B, is_next=True), Key(C, now - 50), Key(D, now - 500)]
    path.write_text(format_keys(keys))
    path.chmod(0o640)
    rehearsed = run_main("keyring", "retire", "--after", "100", "--dry-run", str(path))
    assert rehearsed.out.startswith("client1: retired 1\n")
    assert read_keys(path) == keys
    told = run_main("keyring", "retire", "--after", "100", str(path))
    assert told == rehearsed
    assert told.out == (
        f"client1: retired 1\nclient1: superseded {keyrings.format_time(now - 50)}, "
        f"to be retired {keyrings.format_time(now + 50)}\n"
    )
    assert read_keys(path) == keys[:3]
    retired = path.with_suffix(".retired")
    assert read_keys(retired) == keys[3:]
    assert retired.stat().st_mode & 0o7777 == 0o640
    assert run_main("keyring", "retire", "--after", "0", str(path)).out == "client1: retired 1\n"
    assert read_keys(retired) == [keys[2], keys[3]]
    assert run_main("keyring", "retire", "--after", "0", str(path)).out == "client1: retired 0\n"


def test_retire_without_keyring_retires_nothing(path: Path) -> None:
    assert run_main("keyring", "retire", "--after", "0", str(path)).out == "client1: retired 0\n"
    assert not path.exists()
