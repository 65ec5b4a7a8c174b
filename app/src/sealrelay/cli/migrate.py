"""``sealrelay migrate``: the store's tables, as this release needs them."""

from __future__ import annotations

from pathlib import Path

import click

import sealrelay.store.migrate  # noqa: F401 - now, while root: the interpreter may be root's own
from sealrelay.cli.store import become_owner, store_config_option
from sealrelay.config import ServerSettings, load_settings
from sealrelay.errors import Outdated, Unreachable
from sealrelay.store import SchemaOutdated, StoreError, open_store


@click.command()
@store_config_option
@click.option(
    "--check", is_flag=True, help="Change nothing; fail (exit code 9) when something is due."
)
def migrate(path: Path, check: bool) -> None:
    """Bring the store's tables up to date with this release.

    Run it before the servers of a new release are started; those of the release before go on
    working. Several hosts may run it at once.
    """
    settings = load_settings(path, ServerSettings)
    try:
        store = open_store(settings.store, read_only=check)
        become_owner(store)
        if check:
            store.check_schema()
            applied = []
        else:
            applied = store.migrate()
        revision = store.revision()
        store.close()
    except SchemaOutdated as error:
        raise Outdated(f"{path}: {error}") from None
    except StoreError as error:
        raise Unreachable(f"store of {path}: {error}") from None
    for number in applied:
        click.echo(f"Applied {number}.")
    if not applied:
        click.echo(f"The schema is current (revision {revision}).")
