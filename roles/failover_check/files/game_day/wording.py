"""How numbers are said, on the terminal and on the page."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def say_count(number: int, noun: str, nouns: str = "") -> str:
    """``1 message``, ``2,000 messages``; ``nouns`` where an s is not enough."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def spell_count(number: int, noun: str, nouns: str = "") -> str:
    """The same with the number as a word, up to ten."""
    said = say_count(number, noun, nouns)
    return said.replace(f"{number}", _WORDS[number], 1) if number < len(_WORDS) else said


def say_milliseconds(milliseconds: float | None) -> str:
    """``7.2 ms``, ``212 ms``, ``3.4 s``, ``47 s``; a dash for None."""
    if milliseconds is None:
        return "-"
    if milliseconds < 9.95:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.{1 if milliseconds < 9950 else 0}f} s"


def say_offset(seconds: float) -> str:
    """Seconds from the act, with their sign: ``+0.041 s``."""
    return f"{seconds:+.3f} s".replace("-", MINUS)
