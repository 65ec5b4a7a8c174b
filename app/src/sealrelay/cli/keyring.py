"""``sealrelay keyring``: what a server's host knows of its clients' payload keys."""

from __future__ import annotations

import grp
import pwd
import sys
import time
from pathlib import Path

import click

from sealrelay.cli.options import FILE
from sealrelay.keyrings import Owner, format_time, retire_keys, update_keyring

_dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Change nothing, only tell what would be changed."
)


@click.group()
def keyring() -> None:
    """Look after the keyrings on a server's host. Needs root.

    Keys come on standard input, and no key is ever printed.
    """


class _Account(click.ParamType):  # type: ignore[type-arg] # no arguments before click 8.2
    """The number of a user or a group, given by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            if self.name == "user":
                return pwd.getpwnam(str(value)).pw_uid
            return grp.getgrnam(str(value)).gr_gid
        except KeyError:
            self.fail(f"there is no {self.name} {value!r}", param, ctx)


@keyring.command("merge")
@click.option("--owner", type=_Account("user"), metavar="USER", help="Who is to own the file.")
@click.option("--group", type=_Account("group"), metavar="GROUP", help="Its group.")
@click.option("--mode", metavar="MODE", help="Its mode, in octal digits.")
@_dry_run_option
@click.argument("path", type=FILE, metavar="FILE")
def merge(
    path: Path, owner: int | None, group: int | None, mode: str | None, dry_run: bool
) -> None:
    """Tell a keyring FILE what a client seals with, and what it will.

    Reads a keyring from standard input. Its first key is the one that the client seals with; one
    after a line "# next" is known from now on, and not sealed with yet. All others, and all that
    are in the file, stay there as superseded, now or when the file says. No key is ever dropped.

    Prints "written" or "unchanged". Without owner, group or mode these stay what they are.
    """
    there = Owner.of(path)
    try:
        wanted = Owner(
            there.user if owner is None else owner,
            there.group if group is None else group,
            there.mode if mode is None else int(mode, 8),
        )
    except ValueError:
        raise click.BadParameter(f"{mode!r} is not a file's mode.", param_hint="--mode") from None
    text = sys.stdin.buffer.read().decode("ascii", errors="replace")
    written = update_keyring(path, text, int(time.time()), wanted, dry=dry_run)
    click.echo("written" if written else "unchanged")


@keyring.command("retire")
@click.option(
    "--after",
    type=click.IntRange(min=0),
    required=True,
    metavar="SECONDS",
    help="For how long a superseded key stays in use: token_ttl, and what clocks may differ by.",
)
@_dry_run_option
@click.argument("paths", type=FILE, metavar="FILE...", nargs=-1, required=True)
def retire(paths: tuple[Path, ...], after: int, dry_run: bool) -> None:
    """Take superseded keys out of keyring FILEs.

    They open stored messages still, from the file .retired beside it, but none that arrive.
    `sealrelay reseal --forget` removes them when no stored message needs them.
    """
    now = int(time.time())
    for path in paths:
        retired, left = retire_keys(path, now - after, dry=dry_run)
        click.echo(f"{path.stem}: retired {retired}")
        for superseded_at in left:
            click.echo(
                f"{path.stem}: superseded {format_time(superseded_at)}, "
                f"to be retired {format_time(superseded_at + after)}"
            )
