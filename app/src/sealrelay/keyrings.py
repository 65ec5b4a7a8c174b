"""A server's keyring files: which key a client seals with, which is next, and which are old.

``<client>.keys`` is what a server opens messages with that arrive::

    # sealrelay payload keys, newest first
    KEY that the client seals with
    # next
    KEY that it will seal with
    # superseded 2026-11-22T20:00:00Z
    KEY that it sealed with until then

``<client>.retired`` beside it holds keys that open nothing that arrives any more. Stored messages
may still be sealed with them, so whatever reads those takes them too; a server never does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sealrelay.errors import ConfigError
from sealrelay.seal import Keyring, KeyringError, is_key

_HEADER = "# sealrelay payload keys, newest first"
_NEXT = "# next"
_SUPERSEDED = "# superseded "
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Key:
    """One payload key of a client, and its place in the client's life."""

    text: str = field(repr=False)
    superseded_at: int | None = None
    """Seconds since the epoch; None for the one that the client seals with, and for the next."""
    is_next: bool = False


@dataclass(frozen=True)
class ClientKeys:
    """All keys of one client that a server's host has."""

    in_use: Sequence[Key] = ()
    """The newest first."""
    retired: Sequence[Key] = ()

    @property
    def newest(self) -> str | None:
        """The key that the client seals with; None when its keyring has been taken away."""
        return self.in_use[0].text if self.in_use else None

    def open_all(self) -> Keyring:
        """A keyring that seals with the newest of them, and opens whatever any of them opens."""
        return Keyring([key.text for key in (*self.in_use, *self.retired)])

    def open_current(self) -> Keyring | None:
        """A keyring of those that are not superseded; None when there are none."""
        current = [key.text for key in self.in_use if key.superseded_at is None]
        return Keyring(current) if current else None


def parse_keys(text: str) -> list[Key]:
    """Read a keyring with what is said there of each key. Raises KeyringError."""
    keys: list[Key] = []
    superseded_at: int | None = None
    is_next = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith(_SUPERSEDED):
            superseded_at = _parse_time(line.removeprefix(_SUPERSEDED))
        elif line == _NEXT:
            is_next = True
        elif line and not line.startswith("#"):
            if not is_key(line):
                raise KeyringError("one of its lines is not a Fernet key")
            keys.append(Key(line, superseded_at, is_next))
            superseded_at, is_next = None, False
    return keys


def format_keys(keys: Iterable[Key]) -> str:
    """The text of a keyring, as ``parse_keys`` reads it."""
    lines = [_HEADER]
    for key in keys:
        if key.superseded_at is not None:
            lines.append(f"{_SUPERSEDED}{format_time(key.superseded_at)}")
        if key.is_next:
            lines.append(_NEXT)
        lines.append(key.text)
    return "\n".join([*lines, ""])


def format_time(seconds: int) -> str:
    """Seconds since the epoch as they stand in a keyring."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(_TIME)


def _parse_time(text: str) -> int:
    try:
        return int(datetime.strptime(text, _TIME).replace(tzinfo=timezone.utc).timestamp())
    except ValueError:
        raise KeyringError("one of its times is not of the form 2026-11-22T20:00:00Z") from None


def merge_keys(
    known: Sequence[Key], given: Sequence[Key], retired: Sequence[Key], now: int
) -> list[Key]:
    """What a server is to know, of what it knew and what it is told; never less than it knew.

    The first of ``given`` is what the client seals with. Those marked as next are what it may seal
    with soon; what was next and is not told any more counts as superseded, in case it was used.
    Of the others, one that is retired already stays so. ``now`` is in seconds since the epoch.

    Raises KeyringError when no key is given.
    """
    if not given:
        raise KeyringError("it holds no key")
    merged = {given[0].text: Key(given[0].text)}
    for key in given[1:]:
        if key.is_next:
            merged.setdefault(key.text, Key(key.text, is_next=True))
    told = {key.text: key.superseded_at for key in given if key.superseded_at is not None}
    gone = {key.text for key in retired} - {key.text for key in known}
    for key in (*(key for key in given if key.text not in gone), *known):
        merged.setdefault(key.text, Key(key.text, told.get(key.text, now)))
    for key in known:
        # what is known here has been known for longer than what others say of it
        if merged[key.text].superseded_at is not None and key.superseded_at is not None:
            merged[key.text] = Key(key.text, key.superseded_at)
    return list(merged.values())


def split_due(keys: Sequence[Key], before: int) -> tuple[list[Key], list[Key]]:
    """What stays in use, and what was superseded at ``before`` (s since the epoch) or earlier.

    The newest stays, whatever is said of it: the client may still seal with it.
    """
    stay: list[Key] = []
    due: list[Key] = []
    for number, key in enumerate(keys):
        is_due = number > 0 and key.superseded_at is not None and key.superseded_at <= before
        (due if is_due else stay).append(key)
    return stay, due


def retired_file(keyring: Path) -> Path:
    """Where the retired keys of a keyring lie."""
    return keyring.with_suffix(".retired")


def read_keys(path: Path) -> list[Key]:
    """The keys in a file; none when there is no file. Raises ConfigError."""
    try:
        text = path.read_bytes().decode("ascii", errors="replace")
        return parse_keys(text)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(
            f"{path}: payload keys: {error.strerror}; run as root or the service's group"
        ) from None
    except KeyringError as error:
        raise ConfigError(
            f"{path}: not a keyring: {error}; one Fernet key a line, as `sealrelay keygen` makes it"
        ) from None


def read_folder(folder: Path) -> dict[str, ClientKeys]:
    """All keys of all clients in a server's keyring folder, for stored messages.

    Raises ConfigError.
    """
    try:
        names = {file.stem for file in folder.iterdir() if file.suffix in (".keys", ".retired")}
    except OSError as error:
        raise ConfigError(
            f"{folder}: keyrings: {error.strerror}; create the folder, or run as root or the "
            f"service's group"
        ) from None
    found = {}
    for name in sorted(names):
        keyring = folder / f"{name}.keys"
        in_use = read_keys(keyring)
        # After the others: a key that is moved meanwhile is seen in one of the files at least.
        retired = read_keys(retired_file(keyring))
        if in_use or retired:
            found[name] = ClientKeys(in_use, retired)
    return found


def update_keyring(path: Path, text: str, now: int, owner: Owner | None, *, dry: bool) -> bool:
    """Merge the keys in ``text`` into a keyring file. Returns whether that changes anything.

    ``owner`` is who is to have the file. Raises ConfigError, also when ``text`` holds no keys.
    """
    try:
        given = parse_keys(text)
    except KeyringError as error:
        raise ConfigError(f"the keys for {path} are not a keyring: {error}") from None
    with _locked(path.parent):
        known = read_keys(path)
        try:
            merged = merge_keys(known, given, read_keys(retired_file(path)), now)
        except KeyringError as error:
            raise ConfigError(f"the keys for {path} are not a keyring: {error}") from None
        return _write(path, format_keys(merged), owner or Owner.of(path), dry=dry)


def retire_keys(path: Path, before: int, *, dry: bool) -> tuple[int, list[int]]:
    """Move keys that were superseded at ``before`` or earlier to the retired ones.

    Returns how many, and when those were superseded that stay. Killed in between, a key is in both
    files, and the next call finds it again. Raises ConfigError.
    """
    with _locked(path.parent):
        stay, due = split_due(read_keys(path), before)
        retired = retired_file(path)
        before_them = read_keys(retired)
        new = [key for key in due if key.text not in {key.text for key in before_them}]
        if due:
            owner = Owner.of(path)
            _write(retired, format_keys([*new, *before_them]), owner, dry=dry)
            _write(path, format_keys(stay), owner, dry=dry)
    return len(due), sorted(key.superseded_at for key in stay if key.superseded_at is not None)


def forget_keys(path: Path, forgotten: Iterable[Key]) -> int:
    """Remove retired keys of a keyring for good; returns how many. Raises ConfigError."""
    texts = {key.text for key in forgotten}
    with _locked(path.parent):
        retired = retired_file(path)
        there = read_keys(retired)
        left = [key for key in there if key.text not in texts]
        if not there:
            return 0
        if left:
            _write(retired, format_keys(left), Owner.of(retired), dry=False)
        else:
            retired.unlink()
            _sync_folder(path.parent)
    return len(there) - len(left)


@dataclass(frozen=True)
class Owner:
    """Who has a file: numbers of user and group, and its mode."""

    user: int
    group: int
    mode: int

    @classmethod
    def of(cls, path: Path) -> Owner:
        """Who has this file; for a new one whoever makes it, and nobody else."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return cls(os.geteuid(), os.getegid(), 0o600)
        return cls(found.st_uid, found.st_gid, found.st_mode & 0o7777)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One at a time changes what is in the folder. Raises ConfigError for errors of the system."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        where = error.filename or folder
        raise ConfigError(f"{where}: keyrings: {error.strerror}; run as root") from None


def _write(path: Path, text: str, owner: Owner, *, dry: bool) -> bool:
    there = path.read_bytes() if path.exists() else None
    if there == text.encode("ascii") and Owner.of(path) == owner:
        return False
    if not dry:
        unfinished = write_new(path, text, owner)
        unfinished.replace(path)
        _sync_folder(path.parent)
    return True


def write_new(path: Path, text: str, owner: Owner) -> Path:
    """Write a file, whole and on disk, that is to get the name ``path``; returns it. OSError."""
    unfinished = path.with_name(f"{path.name}.new")
    # Left by one that was killed, or put there by whom the folder belongs to.
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor
        if (owner.user, owner.group) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, owner.user, owner.group)
        os.fchmod(descriptor, owner.mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    return unfinished


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
