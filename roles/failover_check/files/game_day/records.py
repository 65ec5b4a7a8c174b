"""JSON of others, read strictly: whatever is not as it should be is named by file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


class Unreadable(Exception):
    """A file is not what it should be; says which, and where in it."""


class Record:
    """A JSON object, and where it stands; each method raises Unreadable."""

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            self.refuse("no JSON object")
        self._value = value

    def refuse(self, what: str) -> NoReturn:
        raise Unreadable(f"{self.where}: {what}")

    def text(self, key: str) -> str:
        value = self._value.get(key)
        if not isinstance(value, str):
            self.refuse(f"{key!r} is no text")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self._value.get(key) is None else self.text(key)

    def number(self, key: str) -> float:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"{key!r} is no number")
        if not math.isfinite(value):
            self.refuse(f"{key!r} is not finite")
        return value

    def number_or_none(self, key: str) -> float | None:
        return None if self._value.get(key) is None else self.number(key)

    def whole(self, key: str) -> int:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(f"{key!r} is no whole number")
        return value

    def truth(self, key: str) -> bool:
        value = self._value.get(key, False)
        if not isinstance(value, bool):
            self.refuse(f"{key!r} is neither true nor false")
        return value

    def items(self, key: str) -> list[object]:
        value = self._value.get(key)
        if not isinstance(value, list):
            self.refuse(f"{key!r} is no list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            self.refuse(f"{key!r} is no list of texts")
        return tuple(str(value) for value in values)

    def numbers(self, key: str) -> list[int]:
        numbers = [
            value
            for value in self.items(key)
            if isinstance(value, int) and not isinstance(value, bool)
        ]
        if len(numbers) != len(self.items(key)):
            self.refuse(f"{key!r} is no list of whole numbers")
        return numbers

    def record(self, key: str) -> Record:
        return Record(self._value.get(key), f"{self.where}: {key!r}")

    def records(self, key: str) -> Iterator[Record]:
        for number, value in enumerate(self.items(key), 1):
            yield Record(value, f"{self.where}: {key!r}, number {number}")

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def has_list(self, key: str) -> bool:
        return isinstance(self._value.get(key), list)

    def allow(self, keys: set[str]) -> None:
        if strange := sorted(self._value.keys() - keys):
            self.refuse(f"{', '.join(map(repr, strange))} is not known here")


def read_text(path: Path) -> str | None:
    """A file of UTF-8; None where there is none. Raises Unreadable."""
    content = _read_bytes(path)
    return None if content is None else _decode(content, path)


def parse_json(text: str, where: str) -> object:
    """Raises Unreadable, with ``where`` the text stands."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if error.doc.strip().count("\n") else ""
        raise Unreadable(f"{where}: {line}no JSON: {error.msg}") from None
    except RecursionError:
        raise Unreadable(f"{where}: no JSON of ours: nested too deeply") from None


def read_lines(path: Path) -> Iterator[Record]:
    """JSON lines; empty ones are passed over.

    A last one that was cut off is left out: who wrote it was killed.
    """
    content = _read_bytes(path) or b""
    lines = _decode(content[: content.rfind(b"\n") + 1], path).split("\n")
    for number, line in enumerate(lines[:-1], 1):
        where = f"{path}: line {number}"
        if line:
            yield Record(parse_json(line, where), where)


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{path}: line {line}: not of UTF-8") from None
