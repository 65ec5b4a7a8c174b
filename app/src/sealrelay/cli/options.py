"""What several commands take."""

from __future__ import annotations

from pathlib import Path

import click

# Who may read it shows when it is read, with an error and an exit code of ours.
FILE = click.Path(path_type=Path, readable=False)
