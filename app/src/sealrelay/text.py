"""Text that others wrote, made fit for a log line or a terminal."""

from __future__ import annotations


def escape_text(text: str) -> str:
    """``text`` on one line, control characters and backslashes escaped: no log line is forged."""
    return "".join(
        char
        if char.isprintable() and char != "\\"
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
