"""The coordinator: takes sealed messages from clients and gets each stored by one of the servers.

It holds no payload key and cannot read what it carries.
"""

from __future__ import annotations

import atexit
import logging
import time
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from sealrelay import metrics
from sealrelay.config import CoordinatorSettings
from sealrelay.credentials import Credentials
from sealrelay.dispatch import DeadlinePassed, Message, NoHealthyServer, QueueFull, Relay
from sealrelay.dispatch.connection import ServerConnection
from sealrelay.dispatch.decisions import Dispatch, Limits
from sealrelay.dispatch.observer import Observer, Report, merge_reports
from sealrelay.identity import Endpoint, Identity, Role
from sealrelay.journal import note
from sealrelay.page import StatusPage
from sealrelay.processes import read_reports
from sealrelay.replies import Problem, Reply, message_reply
from sealrelay.seal import Token
from sealrelay.web import add_message_endpoint, json_response, make_app, read_body, read_token
from sealrelay.wire import DataRequest, Outcome

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_log = logging.getLogger("sealrelay.coordinator")


def make_relay(settings: CoordinatorSettings, started: float, credentials: Credentials) -> Relay:
    """The relay that the settings describe, not started; ``started`` is when the service was."""
    addresses = {server.name: server for server in settings.servers}

    def connect(name: str) -> ServerConnection:
        identity = Identity(settings.trust_domain, Role.SERVER, name)
        return ServerConnection(addresses[name], identity, credentials)

    dispatch = Dispatch(
        addresses,
        Limits(
            max_batch=settings.max_batch,
            # so a batch, JSON around it included, stays below what servers accept
            max_batch_bytes=settings.max_body_bytes,
            max_waiting=settings.max_waiting,
            max_waiting_bytes=settings.max_waiting_bytes,
            patience=2 * settings.probe_interval,
            hedge_floor=settings.hedge_floor,
            hedge_ceiling=settings.hedge_ceiling,
            retry_share=settings.retry_share,
        ),
    )
    urls = {name: address.url for name, address in addresses.items()}
    return Relay(
        dispatch,
        urls,
        connect,
        Observer(settings.name, urls, dispatch, settings.max_waiting, started, settings.lanes),
        lanes=settings.lanes,
        attempt_timeout=settings.attempt_timeout,
        probe_interval=settings.probe_interval,
    )


def create_app(settings: CoordinatorSettings, started: float, credentials: Credentials) -> Flask:
    """The coordinator's WSGI application; ``started`` in seconds since the epoch.

    Starts the lanes and probes, so it is called in the worker process.
    """
    relay = make_relay(settings, started, credentials)
    credentials.when_changed(relay.renew_connections)
    relay.start()
    atexit.register(relay.close)
    app = make_app(__name__, settings, started, credentials)
    page = StatusPage(app, settings.trust_domain)
    page.start()

    def take_data(peer: Identity, environ: WSGIEnvironment) -> Reply:
        result = "unexpected"
        began = time.monotonic()
        try:
            token = read_token(read_body(environ, DataRequest, settings.max_body_bytes).data)
            outcome = deliver(peer.name, token, began)
            reply = message_reply(outcome, token)
            result = "replayed" if outcome.replayed else "ok"
        except Problem as problem:
            result = problem.name
            raise
        finally:
            metrics.MESSAGES.add(result)
        took = (time.monotonic() - began) * 1000
        note(
            _log,
            f"Message {token.message_id.hex()} from {peer.name} stored by {outcome.server}"
            f" in {took:.1f} ms",
        )
        return reply

    def deliver(client: str, token: Token, began: float) -> Outcome:
        deadline = time.monotonic() + settings.deadline
        try:
            return relay.deliver(Message(token.message_id, client, token.text, deadline))
        except NoHealthyServer:
            raise Problem(
                503, "no-healthy-server", "No server is healthy just now.", retry_after=1
            ) from None
        except QueueFull:
            raise Problem(
                503, "queue-full", "Too many messages wait here just now.", retry_after=1
            ) from None
        except DeadlinePassed:
            raise Problem(
                504, "deadline-passed", f"No server answered within {settings.deadline:g} s."
            ) from None
        finally:
            metrics.MESSAGE_SECONDS.add(time.monotonic() - began)

    @app.get("/api/status", provide_automatic_options=False)
    def show_status() -> Response:
        return json_response(read_report())

    @app.get("/status", provide_automatic_options=False)
    def show_page() -> Response:
        return page.show(read_report(), refresh=request.args.get("refresh") != "off")

    def read_report() -> Report:
        metrics.publish()  # this worker's report is as old as the others' otherwise
        return merge_reports(read_reports())

    add_message_endpoint(app, settings, Endpoint.COORDINATOR_DATA, take_data)
    return app
