"""What the endpoints of both services share: admission, bodies, the access log.

Flask serves what is asked now and then. The endpoints that carry messages stand before it as plain
WSGI: routing, contexts, request and response objects would cost as much as all else that a message
needs on its way through a coordinator.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import gevent
import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from sealrelay import __version__, metrics, quick
from sealrelay.config import ServiceSettings
from sealrelay.credentials import Credentials
from sealrelay.identity import Endpoint, Identity, IdentityRefused, LeafRefused, may_call
from sealrelay.replies import Problem, Reply, json_reply
from sealrelay.seal import Token, TokenMalformed, parse_token
from sealrelay.text import escape_text

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_access_log = logging.getLogger("sealrelay.access")
_log = logging.getLogger("sealrelay.web")

_TOLD_OTHERWISE = frozenset(
    {"/healthz", "/metrics", "/status", "/api/status", "/api/data", "/api/batch"}
)
"""Paths of which only what is unusual is news: each message leaves a line of its own, and looks at
the service's state come all the time."""

_FOR_BROWSERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""An operator may look with one: nothing that is told here is to be run, framed or guessed at.
A page says itself what of it may be used."""

T = TypeVar("T")


class _Identified(Protocol):
    """A connection whose peer is known.

    ``identity`` raises IdentityRefused, and LeafRefused where the leaf does not count any more.
    """

    @property
    def identity(self) -> Identity: ...


def make_app(
    name: str, settings: ServiceSettings, started: float, credentials: Credentials
) -> Flask:
    """A Flask application that admits nobody but whom ``identity`` lets in.

    It has ``GET /healthz``, which tells the fingerprint of the files that ``credentials`` are made
    of, and ``GET /metrics``. ``started`` is when the service was started, in seconds since the
    epoch.
    """
    app = Flask(name, static_folder=None)
    endpoints = {
        (endpoint.value[1], endpoint.value[2]): endpoint
        for endpoint in Endpoint
        if endpoint.value[0] is settings.role
    }

    @app.before_request
    def admit() -> None:
        g.began = time.perf_counter()
        g.peer = _identify_peer(request.environ)
        endpoint = endpoints.get((request.method, request.path))
        if endpoint is None:
            raise Problem(404, "no-such-endpoint", f"There is no {request.method} {request.path}.")
        _check_role(g.peer, endpoint, settings.trust_domain)

    @app.after_request
    def log_access(response: Response) -> Response:
        peer = g.peer if "peer" in g else None
        _log_access(peer, request.method, request.path, response.status_code, g.began)
        for name, value in _FOR_BROWSERS.items():
            response.headers.setdefault(name, value)
        return response

    app.register_error_handler(Problem, lambda problem: _flask_response(problem.reply()))
    app.register_error_handler(HTTPException, _http_problem)
    app.register_error_handler(Exception, lambda _: _flask_response(_unexpected(request.path)))

    @app.get("/healthz", provide_automatic_options=False)
    def healthz() -> Response:
        app.config["CHECK_HEALTH"]()
        return json_response(
            {
                "status": "ok",
                "name": settings.name,
                "version": __version__,
                "release": release_folder(),
                "started": started,
                "worker": os.getpid(),
                "files": credentials.fingerprint,
                "expires": credentials.expiries,
            }
        )

    @app.get("/metrics", provide_automatic_options=False)
    def show_metrics() -> Response:
        return Response(metrics.scrape(settings.role), content_type=metrics.CONTENT_TYPE)

    app.config["CHECK_HEALTH"] = lambda: None
    metrics.start(settings.role, settings.name, started)
    return app


def add_message_endpoint(
    app: Flask,
    settings: ServiceSettings,
    endpoint: Endpoint,
    answer: Callable[[Identity, WSGIEnvironment], Reply],
) -> None:
    """Have ``answer`` called for an endpoint, with the peer and the WSGI environment (PEP 3333).

    It may raise Problem. Admission and the access log are those of all other endpoints.
    """
    _, own_method, own_path = endpoint.value
    others = app.wsgi_app

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != own_path or environ["REQUEST_METHOD"] != own_method:
            return others(environ, start_response)
        began = time.perf_counter()
        peer = None
        try:
            peer = _identify_peer(environ)
            _check_role(peer, endpoint, settings.trust_domain)
            reply = answer(peer, environ)
        except Problem as problem:
            reply = problem.reply()
        except Exception:  # noqa: BLE001 - logged, and told without what it says
            reply = _unexpected(own_path)
        _log_access(peer, own_method, own_path, reply.status, began)
        reply.headers.append(("Content-Length", str(len(reply.body))))
        start_response(reply.status_line, reply.headers)
        return [reply.body]

    app.wsgi_app = serve  # type: ignore[method-assign] # as Flask's documentation has it


def release_folder() -> str:
    """The folder of the release that runs."""
    return str(Path(sys.prefix).resolve())


def json_response(value: object) -> Response:
    """Flask's form of an answer with ``value`` as JSON."""
    return _flask_response(json_reply(value))


def read_body(environ: WSGIEnvironment, kind: type[T], limit: int) -> T:
    """The request's JSON body of at most ``limit`` bytes, as ``kind``.

    Raises Problem: 411 without Content-Length (RFC 9110 §15.5.12), 413, 415, 400.
    """
    stated = environ.get("CONTENT_LENGTH")
    if not stated or "HTTP_TRANSFER_ENCODING" in environ:
        raise Problem(411, "length-required", "Send the body with a Content-Length.")
    length = int(stated)  # gunicorn has seen to it that these are digits
    if length > limit:
        raise Problem(413, "too-large", f"The body has {length} bytes; the limit is {limit} bytes.")
    media_type = environ.get("CONTENT_TYPE", "").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise Problem(415, "unsupported-type", "Send the body as application/json.")
    source = environ["wsgi.input"]
    try:
        # What came with its head needs no watch: a timer costs as much as reading the body.
        if isinstance(source, quick.Body) and source.arrived == length:
            body = source.read(length)
        else:
            with _body_deadline():
                body = source.read(length)
    except OSError:  # the peer has left
        body = b""
    if len(body) != length:
        raise Problem(400, "malformed", "The body ended before its Content-Length.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # a validation error names a field and a type; a syntax error could quote the body
        fact = str(error) if isinstance(error, msgspec.ValidationError) else "not valid JSON"
        raise Problem(400, "malformed", f"The body is not of the expected form: {fact}.") from None


def read_token(data: str) -> Token:
    """The sealed message in ``data``. Raises Problem 400 when it is none."""
    try:
        return parse_token(data)
    except TokenMalformed as error:
        raise Problem(400, "malformed", f"Not a sealed message: {error}.") from None


def _identify_peer(environ: WSGIEnvironment) -> Identity:
    # gunicorn documents no other way to the connection; the key is its own
    connection: _Identified = environ["gunicorn.socket"]
    try:
        return connection.identity
    except LeafRefused as refused:
        raise Problem(
            403, "leaf-refused", f"Your certificate does not count: {refused}.", closes=True
        ) from None
    except IdentityRefused as refused:
        raise Problem(
            403, "identity-refused", f"Your certificate is not one of ours: {refused}."
        ) from None


def _check_role(peer: Identity, endpoint: Endpoint, trust_domain: str) -> None:
    if not may_call(peer, endpoint, trust_domain):
        _, method, path = endpoint.value
        raise Problem(
            403,
            "role-not-allowed",
            f"The role {peer.role.value} may not call {method} {path} here.",
        )


def _log_access(peer: Identity | None, method: str, path: str, status: int, began: float) -> None:
    level = logging.DEBUG if path in _TOLD_OTHERWISE and status == 200 else logging.INFO
    if not _access_log.isEnabledFor(level):
        return
    _access_log.log(
        level,
        'access peer=%s "%s %s" %d %.1fms',
        peer.label if peer else "unidentified",
        method,
        escape_text(path),
        status,
        (time.perf_counter() - began) * 1000,
    )


def _body_deadline() -> gevent.Timeout:
    return gevent.Timeout(
        quick.BODY_DEADLINE,
        # where the next request begins is unknown
        Problem(408, "too-slow", "The body did not arrive in time.", closes=True),
    )


def _flask_response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers)


def _http_problem(error: HTTPException) -> Response:
    name = (error.name or "error").lower().replace(" ", "-")
    return _flask_response(Problem(error.code or 500, name, error.description or "").reply())


def _unexpected(path: str) -> Reply:
    _log.exception("Unexpected error while answering %s", escape_text(path))
    return Problem(500, "unexpected", "The service failed; its log says more.").reply()
