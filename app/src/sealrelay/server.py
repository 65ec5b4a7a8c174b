"""The server: opens each token with its client's keys, stores it once, then acknowledges."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
from flask import Flask

from sealrelay import metrics
from sealrelay.config import ServerSettings, keyring_files, load_keyrings
from sealrelay.credentials import Credentials
from sealrelay.identity import (
    Endpoint,
    Identity,
    IdentityRefused,
    LeafRefused,
    Role,
    identify_certificate,
)
from sealrelay.journal import note
from sealrelay.replies import Problem, Reply, json_reply, message_reply
from sealrelay.seal import Keyring, Token, TokenMalformed, TokenNotOpened, parse_token
from sealrelay.store import (
    GroupCommit,
    Record,
    SchemaOutdated,
    SqlStore,
    StoreError,
    StoreFull,
    StoreMoved,
    open_store,
)
from sealrelay.text import escape_text
from sealrelay.trust import Trust
from sealrelay.web import add_message_endpoint, make_app, read_body, read_token
from sealrelay.wire import BatchAnswer, BatchMessage, BatchRequest, DataRequest, Outcome

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_log = logging.getLogger("sealrelay.server")

BATCH_BODY_FACTOR = 2
"""A batch's body may have this many times ``max_body_bytes``; coordinators stay below it."""


_STORE_PATIENCE = 15.0
"""Seconds to wait at start for a store that others keep busy, or that is just restarting."""


_MEASURE_EVERY = 15.0
"""Seconds between two looks at the store's size."""


class Intake:
    """Takes messages in: opens, stores and answers for each of them by itself."""

    def __init__(
        self, settings: ServerSettings, keyrings: Callable[[], Mapping[str, Keyring]]
    ) -> None:
        """``keyrings`` says which are to be used now."""
        self._settings = settings
        self._keyrings = keyrings
        self._writer = GroupCommit(open_store(settings.store), note_commit)

    def prepare(self) -> None:
        """Check that the store is ready; waits for one that does not answer. Raises StoreError."""
        deadline = time.monotonic() + _STORE_PATIENCE
        while True:
            try:
                self._writer.run(SqlStore.check_schema)
                risk = self._writer.run(SqlStore.find_risk)
                break
            except SchemaOutdated:
                raise
            except StoreError as error:
                if time.monotonic() >= deadline:
                    raise
                _log.warning("Waiting for the store: %s", error)
                time.sleep(0.2)
        if risk is not None:
            _log.warning("%s", risk)

    def keep_measuring(self) -> None:
        """Publish the store's size now and then; never returns."""
        while True:
            try:
                metrics.STORE_BYTES.set(self._writer.run(SqlStore.size_bytes))
            except StoreError as error:
                _log.warning("The store's size is unknown: %s", error)
            gevent.sleep(_MEASURE_EVERY)

    def check(self) -> None:
        """Raises Problem 503 when the store does not answer, or what it is kept in was moved."""
        try:
            self._writer.run(SqlStore.check)
        except StoreError as error:
            _log.error("Health check: %s", error)
            # Only those who run the services come here: a client is told no path.
            detail = f"{error}." if isinstance(error, StoreMoved) else "The store does not answer."
            raise Problem(503, "store-unavailable", detail) from None

    def take(self, messages: Sequence[BatchMessage]) -> list[Outcome]:
        """Store every message that opens, in one commit; an outcome for each, in their order.

        A message that is refused, or a store that fails, never decides over its neighbours.
        """
        began = time.monotonic()
        keyrings = self._keyrings()  # for all of the batch, whatever is reloaded meanwhile
        opened = [self._open_safely(message, keyrings) for message in messages]
        records = [entry for entry in opened if isinstance(entry, Record)]
        stored = iter(self._store(records))
        outcomes = [next(stored) if isinstance(entry, Record) else entry for entry in opened]
        count_outcomes(outcomes, time.monotonic() - began)
        return outcomes

    def _open_safely(
        self, message: BatchMessage, keyrings: Mapping[str, Keyring]
    ) -> Record | Outcome:
        try:
            return self._open(message, keyrings)
        except Exception:  # noqa: BLE001 - a bug that one message meets is not its neighbours'
            _log.exception("Unexpected error while opening a message from %s", message.client)
            return Outcome(500, problem="unexpected", detail="The server's log says more.")

    def _open(self, message: BatchMessage, keyrings: Mapping[str, Keyring]) -> Record | Outcome:
        try:
            token = parse_token(message.data)
        except TokenMalformed as error:
            return Outcome(400, problem="malformed", detail=f"Not a sealed message: {error}.")
        now = time.time()
        try:
            plaintext = self._open_token(keyrings.get(message.client), token, int(now))
        except TokenNotOpened as error:
            _log.warning(
                "Refused message %s from %s: %s", token.message_id.hex(), message.client, error
            )
            return Outcome(422, problem="token-refused", detail="The token is refused.")
        if self._settings.log_payloads:
            text = escape_text(plaintext.decode("utf-8", errors="backslashreplace"))
            _log.info("Decrypted data: %s", text)
        return Record(
            message_id=token.message_id,
            client=message.client,
            token=token.text,
            sealed_at=token.sealed_at,
            received_at=int(now * 1000),
            server=self._settings.name,
        )

    def _open_token(self, keyring: Keyring | None, token: Token, now: int) -> bytes:
        if keyring is None:
            raise TokenNotOpened("there is no keyring for this client")
        return keyring.open(token, ttl=self._settings.token_ttl, now=now)

    def _store(self, records: Sequence[Record]) -> list[Outcome]:
        if not records:
            return []
        try:
            stored = self._writer.add(records)
        except StoreFull as error:
            _log.error("%s", error)
            return [Outcome(507, problem="store-full", detail="The store is full.")] * len(records)
        except StoreError as error:
            _log.error("%s", error)
            outcome = Outcome(503, problem="store-unavailable", detail="The store does not answer.")
            return [outcome] * len(records)
        for record, result in zip(records, stored, strict=True):
            what = "Replayed" if result.replayed else "Stored"
            note(_log, f"{what} message {record.message_id.hex()} from {record.client}")
        return [Outcome(200, replayed=result.replayed, server=result.server) for result in stored]


def count_outcomes(outcomes: Sequence[Outcome], seconds: float) -> None:
    """Count a batch that was answered ``seconds`` after it came."""
    metrics.BATCH_MESSAGES.add(len(outcomes))
    metrics.MESSAGE_SECONDS.add(seconds, len(outcomes))
    for outcome in outcomes:
        metrics.MESSAGES.add("replayed" if outcome.replayed else outcome.problem or "ok")


def note_commit(records: int, seconds: float) -> None:
    """Count a commit that took ``seconds``."""
    metrics.COMMIT_MESSAGES.add(records)
    metrics.COMMIT_SECONDS.add(seconds)


def create_app(settings: ServerSettings, started: float, credentials: Credentials) -> Flask:
    """The server's WSGI application; ``started`` in seconds since the epoch.

    Raises ConfigError (keyrings that cannot be read) or StoreError (no store to be opened).
    """
    folder = Path(settings.keyrings)
    keyrings = credentials.add(
        "keyrings", lambda: keyring_files(folder), lambda: load_keyrings(folder)
    )
    intake = Intake(settings, lambda: keyrings.value)
    intake.prepare()
    app = make_app(__name__, settings, started, credentials)
    app.config["CHECK_HEALTH"] = intake.check
    gevent.spawn(intake.keep_measuring)

    def take_batch(_coordinator: Identity, environ: WSGIEnvironment) -> Reply:
        batch = read_body(environ, BatchRequest, BATCH_BODY_FACTOR * settings.max_body_bytes)
        return json_reply(BatchAnswer(intake.take(batch.messages)))

    def take_data(_proxy: Identity, environ: WSGIEnvironment) -> Reply:
        client = _forwarded_client(environ, settings.trust_domain, credentials.tls.trust)
        data = read_body(environ, DataRequest, settings.max_body_bytes).data
        token = read_token(data)
        (outcome,) = intake.take([BatchMessage(client.name, data)])
        return message_reply(outcome, token)

    add_message_endpoint(app, settings, Endpoint.SERVER_BATCH, take_batch)
    add_message_endpoint(app, settings, Endpoint.SERVER_DATA, take_data)
    return app


def _forwarded_client(environ: WSGIEnvironment, trust_domain: str, trust: Trust) -> Identity:
    """The client whose certificate a proxy with the coordinator role passes on (RFC 9440).

    The proxy is believed to have seen the client's key, and nothing beyond that.
    """
    header = environ.get("HTTP_CLIENT_CERT", "")
    try:
        if not (len(header) > 2 and header.startswith(":") and header.endswith(":")):
            raise IdentityRefused("the Client-Cert header is not one byte sequence")
        der = base64.b64decode(header[1:-1], validate=True)
        client = identify_certificate(der)
        trust.check_signed(der, time.time())
    except LeafRefused as refused:
        raise Problem(
            403, "leaf-refused", f"The forwarded certificate does not count: {refused}."
        ) from None
    except (IdentityRefused, ValueError) as error:
        raise Problem(
            400, "malformed", f"The Client-Cert header (RFC 9440) cannot be used: {error}."
        ) from None
    if client.role is not Role.CLIENT or client.trust_domain != trust_domain:
        raise Problem(403, "role-not-allowed", "The forwarded certificate is not a client's.")
    return client
