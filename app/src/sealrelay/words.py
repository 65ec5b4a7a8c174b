"""Figures in words for people: how long, how many, how large, and how much time is left."""

from __future__ import annotations

LEAF_SOON = 14 * 86_400
CRL_SOON = 2 * 86_400
"""Seconds before the end of a certificate or CRL from which on people are to see it."""


def tell_duration(seconds: float) -> str:
    """In the one or two largest units: ``3 s``, ``4 min``, ``2 h 5 min``, ``12 d``."""
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} d"


def tell_age(then: float | None, now: float) -> str:
    """How long ago something was; nothing where that is not known."""
    return "" if then is None else tell_duration(now - then)


def tell_time_left(ends: float, now: float, over: str) -> str:
    """How long something still lasts; ``over`` is the word for what lasts no longer."""
    return over if ends <= now else tell_duration(ends - now)


def tell_rate(value: float | None) -> str:
    """A number of things a second."""
    return "" if value is None else f"{value:,.1f}"


def tell_milliseconds(value: float | None) -> str:
    """A time in milliseconds."""
    return "" if value is None else f"{value:.1f} ms"


def tell_bytes(value: int | None) -> str:
    """In KiB, or MiB from one of those on."""
    if value is None:
        return ""
    return f"{value / 1024:,.0f} KiB" if value < 1024**2 else f"{value / 1024**2:,.0f} MiB"
