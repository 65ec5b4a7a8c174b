"""How those ask who have time: prune and reseal, which work beside the servers' commits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sealrelay.store.records import SchemaOutdated, StoreError

T = TypeVar("T")

LONGEST = 0.02
"""Seconds that a piece of work may take before the next is made smaller: commits wait for it."""
PAUSE = 4
"""Pauses are so many times as long as others had to wait: most of the time belongs to them."""
_PATIENCE = 10.0
"""Seconds for which a store that does not answer is asked again."""


def insist(ask: Callable[[], T]) -> T:
    """Ask a store that may be busy, or just restarting. Raises StoreError."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except SchemaOutdated:
            raise
        except StoreError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)
