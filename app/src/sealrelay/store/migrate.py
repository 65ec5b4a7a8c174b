"""Brings the tables up to date with Alembic, in the caller's transaction."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from sealrelay.store.schema import REVISION

_FOLDER = Path(__file__).parent / "migrations"


def apply_migrations(connection: Connection, current: str | None) -> list[str]:
    """Apply every revision after ``current``; returns them, oldest first."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    due = [script.revision for script in scripts.iterate_revisions(REVISION, current or "base")]
    if due:
        command.upgrade(config, REVISION)
    return due[::-1]
