"""HTTP on a connection of the tests' own, for what no well-behaved client would send."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.deployment import PATIENCE, Service


def make_context(folder: Path, *, with_leaf: bool = True) -> ssl.SSLContext:
    """A plain TLS client: it trusts the folder's CA and shows the folder's leaf, or none.

    Nothing of the app is used, so nothing of it can make a server look stricter than it is.
    """
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if with_leaf:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    service: Service,
    folder: Path | ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> Answer:
    """One request on a connection of its own; exactly the given headers beside Host."""
    context = folder if isinstance(folder, ssl.SSLContext) else make_context(folder)
    connection = http.client.HTTPSConnection(
        "127.0.0.1", service.port, context=context, timeout=PATIENCE
    )
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def post_json(
    service: Service,
    folder: Path | ssl.SSLContext,
    path: str,
    value: object,
    headers: Sequence[tuple[str, str]] = (),
) -> Answer:
    body = json.dumps(value).encode()
    standard = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return ask(service, folder, "POST", path, body, [*standard, *headers])


@contextlib.contextmanager
def open_connection(service: Service, folder: Path) -> Iterator[ssl.SSLSocket]:
    """A TLS connection with the folder's leaf, for bytes of any kind."""
    with (
        socket.create_connection(("127.0.0.1", service.port), PATIENCE) as plain,
        make_context(folder).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        yield connection


def exchange_raw(service: Service, folder: Path, request: bytes) -> bytes:
    """Send bytes as they are; all that comes back until the other side closes."""
    with open_connection(service, folder) as connection:
        connection.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer
