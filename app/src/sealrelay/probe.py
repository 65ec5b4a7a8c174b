"""Asks a running service, over mutual TLS and with its own leaf, how it is and how old it is."""

from __future__ import annotations

import http.client
import ssl
import sys
import time
from pathlib import Path

import msgspec

from sealrelay.config import (
    ServiceSettings,
    own_identity,
    reloaded_files,
    split_bind,
)
from sealrelay.errors import Outdated, Unreachable
from sealrelay.identity import IdentityRefused
from sealrelay.reload import fingerprint, stamp_files
from sealrelay.tls import TlsRefused, TlsSet, describe_tls_error, send_close_notify
from sealrelay.wire import read_reason

_ANSWER_TIMEOUT = 5.0
_PAUSE = 0.1


class Health(msgspec.Struct, frozen=True):
    """What ``GET /healthz`` answers."""

    status: str
    name: str
    version: str
    release: str
    """Folder of the release that runs."""
    started: float
    """Seconds since the epoch."""
    worker: int = 0
    """The process that answered; 0 from a release that did not tell."""
    files: str = ""
    """Fingerprint of the files that it has read, of those that it reads again when they change."""


def probe_service(settings: ServiceSettings, wait: float) -> Health:
    """Ask until the service answers, for at most ``wait`` seconds. Raises Unreachable."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return _ask(settings)
        except (
            OSError,
            TlsRefused,
            http.client.HTTPException,
            IdentityRefused,
            msgspec.MsgspecError,
        ) as error:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"{settings.name} does not answer at {settings.bind}: {_reason(error)}"
                ) from None
        time.sleep(_PAUSE)


def check_current(health: Health, path: Path, settings: ServiceSettings, extra: list[Path]) -> None:
    """Raises Outdated when a restart of the service is due.

    It is when the service runs another release than this program, or was started before the last
    change of its settings file ``path`` or of an ``extra`` file. The files named in its settings
    are reloaded by the service itself.
    """
    release = str(Path(sys.prefix).resolve())
    if health.release != release:
        raise Outdated(f"{settings.name} runs {health.release}, not {release}")
    for file in [path, *extra]:
        try:
            # unlike mtime, it also moves when an older file is put in place
            changed = file.stat().st_ctime
        except FileNotFoundError:
            continue
        if changed >= health.started:
            raise Outdated(f"{settings.name} was started before {file} changed")


def wait_for_reload(settings: ServiceSettings, wait: float) -> None:
    """Ask until every worker uses the files that are there now, for at most ``wait`` seconds.

    Those are the files that services read again when they change. Raises Outdated, or Unreachable.
    """
    deadline = time.monotonic() + wait
    reloaded: set[int] = set()
    seen: dict[Path, object] = {}
    while True:
        # which worker answers is chance, so more than one may have to be asked
        health = probe_service(settings, max(0.0, deadline - time.monotonic()))
        found = stamp_files(reloaded_files(settings))
        if found != seen:
            reloaded, seen = set(), dict(found)
        if health.files == fingerprint(found):
            reloaded.add(health.worker)
        if len(reloaded) >= settings.workers:
            return
        if time.monotonic() >= deadline:
            raise Outdated(f"{settings.name} does not use the files that are there; see its log")
        time.sleep(_PAUSE)


def _ask(settings: ServiceSettings) -> Health:
    host, port = split_bind(settings.bind)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound
    # The whole identity is compared below, which says more than a host name would.
    tls = TlsSet(settings.tls)
    context = tls.make_client_context(check_hostname=False)
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=_ANSWER_TIMEOUT)
    try:
        connection.connect()
        identity = tls.identify(connection.sock)
        if identity != own_identity(settings):
            raise IdentityRefused(f"{identity} answers there")
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"answered {response.status}{read_reason(body)}")
        return msgspec.json.decode(body, type=Health)
    finally:
        if connection.sock is not None:
            send_close_notify(connection.sock)
        connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return describe_tls_error(error)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
