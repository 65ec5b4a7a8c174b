"""A plain HTTP client with the standard library only: one request, or no more than a handshake.

Reads JSON: port, cert (or null), key, ca, maximum_tls, and either method, path, headers, body or
body_size, or handshake (true). Prints {status, headers, body}, {accepted: true} or {error}.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
from typing import Any

HANDSHAKE_WAIT = 1.0
"""Seconds: in TLS 1.3 a refusal comes only after the client's own handshake is done."""


def make_context(spec: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=spec["ca"])
    if spec.get("cert"):
        context.load_cert_chain(spec["cert"], spec["key"])
    if spec.get("maximum_tls"):
        context.maximum_version = ssl.TLSVersion[spec["maximum_tls"]]
    return context


def shake_hands(spec: dict[str, Any]) -> dict[str, Any]:
    plain = socket.create_connection(("127.0.0.1", spec["port"]), timeout=10)
    with plain, make_context(spec).wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        sock.settimeout(HANDSHAKE_WAIT)
        try:
            return {"closed": sock.recv(1) == b""}
        except TimeoutError:
            return {"accepted": True, "tls": sock.version()}


def ask(spec: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", spec["port"], context=make_context(spec), timeout=30
    )
    body = spec.get("body")
    if "body_size" in spec:
        body = "x" * spec["body_size"]
    connection.request(spec["method"], spec["path"], body, spec.get("headers", {}))
    response = connection.getresponse()
    text = response.read().decode("utf-8", "backslashreplace")
    return {"status": response.status, "headers": dict(response.headers), "body": text}


given = json.load(sys.stdin)
try:
    answer = shake_hands(given) if given.get("handshake") else ask(given)
except OSError as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
json.dump(answer, sys.stdout)
