"""The ``sealrelay`` command. Every error of ours becomes one line and its documented exit code."""

from __future__ import annotations

import importlib
import sys

import click

from sealrelay import __version__
from sealrelay.errors import SealrelayError

_EXIT_CODES = """\b
Exit codes:
  0  done
  1  unexpected error
  2  wrong use of the command
  3  unreachable: no coordinator or no healthy server took the message in time, or the store does
     not answer
  4  a certificate, or the role it names, was refused
  5  token refused: other payload keys, altered, too old or from the future
  6  message refused: malformed or too large
  7  an input file cannot be read, or no such message is stored
  8  wrong settings, or a file that they name
  9  the running service is older than what is installed (probe --current), or the store's schema
     (migrate --check)
  10 a part of the deployment is not healthy, or cannot be asked (status)
  11 the store does not hold what a history says that it must (verify)
"""


_COMMANDS = {
    "send": "sealrelay.cli.send:send",
    "messages": "sealrelay.cli.messages:messages",
    "migrate": "sealrelay.cli.migrate:migrate",
    "prune": "sealrelay.cli.prune:prune",
    "reseal": "sealrelay.cli.reseal:reseal",
    "keyring": "sealrelay.cli.keyring:keyring",
    "status": "sealrelay.cli.status:status",
    "load": "sealrelay.cli.load:load",
    "verify": "sealrelay.cli.verify:verify",
    "keygen": "sealrelay.cli.services:keygen",
    "check-config": "sealrelay.cli.services:check_config",
    "probe": "sealrelay.cli.services:probe",
    "server": "sealrelay.cli.services:server",
    "coordinator": "sealrelay.cli.services:coordinator",
}


class _LazyGroup(click.Group):
    """Imports a command when it is used: a service must not load what gevent has yet to patch
    (the client's urllib3), and a probe is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(
    cls=_LazyGroup,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="sealrelay")
def command() -> None:
    """Sealed messages over mutual TLS: none lost, none stored twice."""


def main() -> None:
    """Run the command; exits the process."""
    try:
        command(prog_name="sealrelay")
    except SealrelayError as error:
        click.echo(f"sealrelay: {error}", err=True)
        sys.exit(error.exit_code)
