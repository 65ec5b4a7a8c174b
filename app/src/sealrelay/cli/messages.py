"""``sealrelay messages``: what a server's store holds, opened with its keyrings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import click
import msgspec

from sealrelay.cli.options import FILE
from sealrelay.config import ServerSettings, load_settings
from sealrelay.errors import ConfigError, NotStored
from sealrelay.keyrings import read_folder
from sealrelay.seal import Keyring, TokenNotOpened, parse_token
from sealrelay.store import Record, SqlStore, StoreError, open_store
from sealrelay.text import escape_text

SERVERS = Path("/etc/sealrelay/servers")

config_option = click.option(
    "--config",
    "path",
    type=FILE,
    metavar="FILE",
    help=f"A server's settings file. Default: the first in {SERVERS}.",
)
_client_option = click.option("--client", metavar="NAME", help="Only messages of this client.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs."
)


@click.group()
def messages() -> None:
    """Look at stored messages, on a server's host. Needs root.

    Where the store is SQLite, being in the servers' group is enough.
    """


@messages.command("count")
@config_option
@_client_option
def count_messages(path: Path | None, client: str | None) -> None:
    """Print how many messages are stored."""
    with opened(path) as (store, _):
        click.echo(store.count(client))


@messages.command("list")
@config_option
@_client_option
@json_option
@click.option("--limit", type=click.IntRange(min=1), help="Only so many, the newest.")
def list_messages(path: Path | None, client: str | None, as_json: bool, limit: int | None) -> None:
    """List stored messages, oldest first, with their text."""
    with opened(path) as (store, keyrings):
        for record in store.newest(client, limit):
            _print(record, keyrings, as_json)


@messages.command("show")
@config_option
@json_option
@click.argument("message_id", metavar="ID")
def show_message(path: Path | None, as_json: bool, message_id: str) -> None:
    """Show the stored message of this id (64 hexadecimal digits)."""
    try:
        key = bytes.fromhex(message_id)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise click.BadParameter("A message id has 64 hexadecimal digits.", param_hint="ID")
    with opened(path) as (store, keyrings):
        record = store.get(key)
        if record is None:
            raise NotStored(f"no message {message_id} is stored here")
        _print(record, keyrings, as_json)


@contextmanager
def opened(path: Path | None) -> Iterator[tuple[SqlStore, dict[str, Keyring]]]:
    """The store of a server on this host, read-only, and keyrings for whatever may be in it."""
    path = path or _first_server()
    settings = load_settings(path, ServerSettings)
    remedy = "see that the database can be reached from here"
    try:
        store = open_store(settings.store, read_only=True)
        if store.file is not None:
            remedy = "run this as root or as a member of the servers' group"
        clients = read_folder(Path(settings.keyrings))
        yield store, {client: keys.open_all() for client, keys in clients.items()}
    except StoreError as error:
        raise ConfigError(
            f"store of {path}: {error}; run `sealrelay migrate` first, or {remedy}"
        ) from None


def _first_server() -> Path:
    try:
        return min(SERVERS.glob("*/server.toml"))
    except ValueError:
        raise ConfigError(
            f"{SERVERS}: no server's settings can be read here; run on a server's host as root or "
            f"as a member of the servers' group, or name a settings file with --config"
        ) from None


def _print(record: Record, keyrings: dict[str, Keyring], as_json: bool) -> None:
    plaintext = open_text(record, keyrings)
    text = None if plaintext is None else plaintext.decode("utf-8", errors="backslashreplace")
    sealed = datetime.fromtimestamp(record.sealed_at, timezone.utc)
    if as_json:
        line = {
            "message_id": record.message_id.hex(),
            "client": record.client,
            "sealed_at": sealed,
            "received_at": datetime.fromtimestamp(record.received_at / 1000, timezone.utc),
            "server": record.server,
            "text": text,
        }
        click.echo(msgspec.json.encode(line))
        return
    shown = "(no key of ours opens it)" if text is None else escape_text(text)
    click.echo(
        f"{record.message_id.hex()}  {sealed:%Y-%m-%dT%H:%M:%SZ}  "
        f"{record.client}  {record.server}  {shown}"
    )


def open_text(record: Record, keyrings: Mapping[str, Keyring]) -> bytes | None:
    """What a stored message says, however old, or None when its client's keys do not open it."""
    keyring = keyrings.get(record.client)
    if keyring is None:
        return None
    try:
        return keyring.open(parse_token(record.token))
    except TokenNotOpened:
        return None
