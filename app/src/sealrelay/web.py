"""What the endpoints of both services share: admission, bodies, problems, the access log."""

from __future__ import annotations

import logging
import ssl
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

import flask
import gevent
import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from sealrelay import __version__, metrics
from sealrelay.config import ServiceSettings
from sealrelay.identity import Endpoint, Identity, IdentityRefused, may_call
from sealrelay.seal import Token, TokenMalformed, parse_token
from sealrelay.text import escape_text
from sealrelay.tls import peer_identity
from sealrelay.wire import Outcome

_access_log = logging.getLogger("sealrelay.access")
_log = logging.getLogger("sealrelay.web")
_DRAIN_LIMIT = 8 * 1024 * 1024
"""Bytes of a refused body that are read all the same, so that its sender gets to see the refusal:
closing with unread data resets the connection, and a reset can overtake the answer."""

_BODY_DEADLINE = 20.0
"""Seconds for a body to arrive: who vanishes in the middle of one must not hold on to a place."""

_LOOKED_AT = frozenset({"/healthz", "/metrics", "/api/status"})

T = TypeVar("T")


class Problem(Exception):
    """An error that a caller is told as a problem document (RFC 9457).

    ``detail`` is for the caller: never a key, a token, a plaintext or an internal state.
    """

    def __init__(
        self, status: int, name: str, detail: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.name, self.detail, self.retry_after = status, name, detail, retry_after

    def response(self) -> Response:
        """The problem as an answer; ``type`` is ``urn:sealrelay:problem:<name>``."""
        document = {
            "type": f"urn:sealrelay:problem:{self.name}",
            "title": self.name.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        response = Response(
            msgspec.json.encode(document), self.status, mimetype="application/problem+json"
        )
        if self.status == 408:
            response.headers["Connection"] = "close"  # where the next request begins is unknown
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        return response


def make_app(name: str, settings: ServiceSettings, started: float) -> Flask:
    """A Flask application that admits nobody but whom ``identity`` lets in.

    It has ``GET /healthz`` and ``GET /metrics``. ``started`` is when the service was started, in
    seconds since the epoch. Raises OSError or ValueError for TLS files that cannot be read.
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
        g.peer = _identify_peer()
        endpoint = endpoints.get((request.method, request.path))
        if endpoint is None:
            raise Problem(404, "no-such-endpoint", f"There is no {request.method} {request.path}.")
        if not may_call(g.peer, endpoint, settings.trust_domain):
            raise Problem(
                403,
                "role-not-allowed",
                f"The role {g.peer.role.value} may not call {request.method} {request.path} here.",
            )

    @app.after_request
    def log_access(response: Response) -> Response:
        peer = g.peer.label if "peer" in g else "unidentified"
        # these come all the time, and only what is unusual about them is news
        quiet = request.path in _LOOKED_AT and response.status_code == 200
        _access_log.log(
            logging.DEBUG if quiet else logging.INFO,
            'access peer=%s "%s %s" %d %.1fms',
            peer,
            request.method,
            escape_text(request.path),
            response.status_code,
            (time.perf_counter() - g.began) * 1000,
        )
        return response

    app.register_error_handler(Problem, Problem.response)
    app.register_error_handler(HTTPException, _http_problem)
    app.register_error_handler(Exception, _unexpected_problem)

    @app.get("/healthz", provide_automatic_options=False)
    def healthz() -> Response:
        app.config["CHECK_HEALTH"]()
        return json_response(
            {
                "status": "ok",
                "name": settings.name,
                "version": __version__,
                "release": str(Path(sys.prefix).resolve()),
                "started": started,
            }
        )

    @app.get("/metrics", provide_automatic_options=False)
    def show_metrics() -> Response:
        return Response(metrics.scrape(settings.role), content_type=metrics.CONTENT_TYPE)

    app.config["CHECK_HEALTH"] = lambda: None
    metrics.start(settings.role, settings.name, settings.tls, started)
    return app


def json_response(value: object, status: int = 200) -> Response:
    """An answer with ``value`` as JSON."""
    return Response(msgspec.json.encode(value), status, mimetype="application/json")


def read_body(kind: type[T], limit: int) -> T:
    """The request's JSON body of at most ``limit`` bytes, as ``kind``.

    Raises Problem: 411 without Content-Length (RFC 9110 §15.5.12), 413, 415, 400.
    """
    length = request.content_length
    if length is None or request.headers.get("Transfer-Encoding"):
        raise _refused_body(411, "length-required", "Send the body with a Content-Length.")
    if length > limit:
        raise _refused_body(
            413, "too-large", f"The body has {length} bytes; the limit is {limit} bytes."
        )
    if request.mimetype != "application/json":
        raise _refused_body(415, "unsupported-type", "Send the body as application/json.")
    with _body_deadline():
        body = request.get_data(cache=False)
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


def answer_client(outcome: Outcome, token: Token) -> Response:
    """What a client is told of its message. Raises Problem for every outcome but 200."""
    if outcome.status != 200:
        retry_after = 1 if outcome.status in (503, 507) else None
        raise Problem(outcome.status, outcome.problem, outcome.detail, retry_after=retry_after)
    response = json_response({"result": "ok"})
    response.headers["Message-Id"] = token.message_id.hex()
    response.headers["Served-By"] = outcome.server
    if outcome.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _identify_peer() -> Identity:
    # gunicorn documents no other way to the connection; the key is its own
    sock: ssl.SSLSocket = request.environ["gunicorn.socket"]
    try:
        return peer_identity(sock)
    except IdentityRefused as refused:
        raise Problem(
            403, "identity-refused", f"Your certificate is not one of ours: {refused}."
        ) from None


def _refused_body(status: int, name: str, detail: str) -> Problem:
    left = _DRAIN_LIMIT
    with _body_deadline():
        while left > 0 and (chunk := request.stream.read(min(left, 65536))):
            left -= len(chunk)
    return Problem(status, name, detail)


def _body_deadline() -> gevent.Timeout:
    return gevent.Timeout(
        _BODY_DEADLINE, Problem(408, "too-slow", "The body did not arrive in time.")
    )


def _http_problem(error: HTTPException) -> flask.typing.ResponseReturnValue:
    name = (error.name or "error").lower().replace(" ", "-")
    return Problem(error.code or 500, name, error.description or "").response()


def _unexpected_problem(_error: Exception) -> Any:
    _log.exception("Unexpected error while answering %s", escape_text(request.path))
    return Problem(500, "unexpected", "The service failed; its log says more.").response()
