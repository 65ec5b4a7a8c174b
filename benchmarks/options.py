"""How much is measured: the full form, the short one, and what the caller changed of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

RATE = 100.0
"""Messages a second while faults are tried."""
PAYLOAD_BYTES = 256

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/var/tmp",  # noqa: S108 - a folder of its own is made there
    show_default=True,
    help="A folder on a real disk, for the store.",
)


@dataclass(frozen=True)
class Extent:
    """Times in seconds."""

    connections: tuple[int, ...]
    rounds: int
    seconds: float
    warm_up: float
    faults: tuple[str, ...]
    fault_rounds: int
    fault_seconds: float
    fault_margin: float
    """Before a fault begins, and after it has ended."""


FULL = Extent(
    connections=(1, 16, 64, 256),
    rounds=3,
    seconds=4.0,
    warm_up=1.0,
    faults=("stop", "kill", "freeze", "blackhole", "slow", "brownout"),
    fault_rounds=1,
    fault_seconds=8.0,
    fault_margin=3.0,
)

QUICK = Extent(
    connections=(1, 16, 64),
    rounds=1,
    seconds=2.0,
    warm_up=0.5,
    faults=("kill", "freeze"),
    fault_rounds=1,
    fault_seconds=3.0,
    fault_margin=2.0,
)
