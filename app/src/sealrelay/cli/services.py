"""What runs on a host: the services, the probe that asks them, and their files."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import click

from sealrelay.cli.options import FILE
from sealrelay.config import (
    ClientSettings,
    CoordinatorSettings,
    OperatorSettings,
    ServerSettings,
    load_any_settings,
    load_settings,
)
from sealrelay.errors import ConfigError, InputFileError
from sealrelay.keyrings import Owner, write_new
from sealrelay.probe import check_current, probe_service, wait_for_reload
from sealrelay.processes import share_folder
from sealrelay.seal import generate_keyring

config_option = click.option(
    "--config",
    "path",
    type=FILE,
    required=True,
    metavar="FILE",
    help="The service's settings file.",
)


@click.command()
@config_option
def server(path: Path) -> None:
    """Run a server, in the foreground.

    This is what its systemd unit does. SIGTERM stops it.
    """
    _run(path, ServerSettings)


@click.command()
@config_option
def coordinator(path: Path) -> None:
    """Run a coordinator, in the foreground.

    This is what its systemd unit does. SIGTERM stops it. Takes a socket from systemd if given one.
    """
    _run(path, CoordinatorSettings)


def _run(path: Path, kind: type[ServerSettings] | type[CoordinatorSettings]) -> None:
    started = time.time()  # before the files are read: what changes meanwhile makes it outdated
    gc.disable()  # what a start makes is there to stay; gunicorn's processes enable it again
    master = os.getpid()
    settings = load_settings(path, kind)
    try:
        with share_folder():
            from sealrelay.serving import serve  # gunicorn and gevent, for services only

            serve(settings, started)
    except SystemExit as end:
        if os.getpid() != master:
            raise  # a worker, which may hold the store
        # Whoever restarts it would wait until Python has taken down one module after the other.
        os._exit(int(end.code or 0))


@click.command()
@config_option
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Keep asking for so long until it answers.",
)
@click.option(
    "--current", is_flag=True, help="Also fail (exit code 9) when a restart of it is due."
)
@click.option(
    "--input",
    "inputs",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="With --current: another file that the service is started from, such as its unit.",
)
@click.option(
    "--reloaded",
    is_flag=True,
    help="Also wait until it uses the TLS files and keyrings that are there now; fail (exit code "
    "9) if it does not.",
)
def probe(path: Path, wait: float, current: bool, inputs: tuple[Path, ...], reloaded: bool) -> None:
    """Ask a service of this host whether it answers.

    Over mutual TLS, with the service's own leaf.
    """
    settings = load_any_settings(path)
    if isinstance(settings, ClientSettings | OperatorSettings):
        raise ConfigError(
            f"{path}: service: only servers and coordinators run; name the settings file of one"
        )
    health = probe_service(settings, wait)
    if current:
        check_current(health, path, settings, list(inputs))
    if reloaded:
        wait_for_reload(settings, wait)
    click.echo(f"{health.name} answers: version {health.version}, {health.release}")


@click.command("check-config")
@click.argument("path", type=FILE, metavar="FILE")
def check_config(path: Path) -> None:
    """Check a settings file.

    Also that the files it names exist, can be read and fit together.
    """
    settings = load_any_settings(path)
    click.echo(f"{path}: good settings of {settings.role.value} {settings.name}")


@click.command()
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Write them to this file, readable by its owner only. It must not exist.",
)
def keygen(out: Path | None) -> None:
    """Make payload keys: a new keyring of one Fernet key."""
    if out is None:
        click.echo(generate_keyring(), nl=False)
        return
    try:
        # Whole or not at all: a keyring that was cut short would be taken for the client's keys.
        unfinished = write_new(out, generate_keyring(), Owner(os.geteuid(), os.getegid(), 0o600))
        try:
            os.link(unfinished, out, follow_symlinks=False)
        finally:
            unfinished.unlink()
    except FileExistsError:
        raise InputFileError(f"{out}: exists already; keys are never overwritten") from None
    except OSError as error:
        raise InputFileError(f"{out}: {error.strerror}") from None
