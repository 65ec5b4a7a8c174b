"""The ``sealrelay`` command. Every error of ours becomes one line and its documented exit code."""

from __future__ import annotations

import sys

import click

from sealrelay import __version__
from sealrelay.cli.messages import messages
from sealrelay.cli.send import send
from sealrelay.cli.services import check_config, coordinator, keygen, probe, server
from sealrelay.errors import SealrelayError

_EXIT_CODES = """\b
Exit codes:
  0  done
  1  unexpected error
  2  wrong use of the command
  3  unreachable: no coordinator or no healthy server took the message in time
  4  a certificate, or the role it names, was refused
  5  token refused: other payload keys, altered, too old or from the future
  6  message refused: malformed or too large
  7  an input file cannot be read
  8  wrong settings, or a file that they name
  9  the running service is older than what is installed (probe --current)
"""


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sealrelay")
def command() -> None:
    """Sealed messages over mutual TLS: none lost, none stored twice."""


for _part in (send, messages, keygen, check_config, probe, server, coordinator):
    command.add_command(_part)


def main() -> None:
    """Run the command; exits the process."""
    try:
        command(prog_name="sealrelay")
    except SealrelayError as error:
        click.echo(f"sealrelay: {error}", err=True)
        sys.exit(error.exit_code)
