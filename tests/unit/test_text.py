"""Text of others on its way into a log."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrelay.text import escape_text


@given(st.text())
def test_escaped_text_is_one_printable_line_and_loses_nothing(text: str) -> None:
    escaped = escape_text(text)
    assert escaped.isprintable()
    assert len(escaped.splitlines()) <= 1
    quoted = "'" + escaped.replace("'", "\\'") + "'"
    assert ast.literal_eval(quoted) == text


@pytest.mark.parametrize("text", ["hello", "Привет, мир", "日本語 text", 'it\'s "quoted"', ""])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert escape_text(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\nServer x is healthy again", "a\\nServer x is healthy again"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\\nb", "a\\\\nb"),
        ("\u202egnp", "\\u202egnp"),
        ("\u2028", "\\u2028"),
        ("\x85", "\\x85"),
        ("\0", "\\x00"),
    ],
)
def test_what_could_forge_a_line_or_move_a_cursor_is_escaped(text: str, escaped: str) -> None:
    assert escape_text(text) == escaped
