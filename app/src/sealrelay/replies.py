"""What a caller is told: an answer, or a problem document (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from sealrelay.seal import Token
from sealrelay.wire import Outcome

_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_ACCEPTED = msgspec.json.encode({"result": "ok"})


class Reply(msgspec.Struct):
    """An answer to a request: status code, body, and the headers beside Content-Length."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]

    @property
    def status_line(self) -> str:
        """The status with its phrase, as WSGI wants it (PEP 3333)."""
        return _STATUS_LINES.get(self.status) or f"{self.status} Unknown"


class Problem(Exception):
    """An error that a caller is told as a problem document (RFC 9457).

    ``detail`` is for the caller: never a key, a token, a plaintext or an internal state.
    """

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        *,
        retry_after: int | None = None,
        closes: bool = False,
    ) -> None:
        """``closes``: the connection ends with this answer."""
        super().__init__(detail)
        self.status, self.name, self.detail, self.retry_after = status, name, detail, retry_after
        self.closes = closes

    def reply(self) -> Reply:
        """The problem as an answer; ``type`` is ``urn:sealrelay:problem:<name>``."""
        document = {
            "type": f"urn:sealrelay:problem:{self.name}",
            "title": self.name.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        headers = [("Content-Type", "application/problem+json")]
        if self.closes:
            headers.append(("Connection", "close"))
        if self.retry_after is not None:
            headers.append(("Retry-After", str(self.retry_after)))
        return Reply(self.status, msgspec.json.encode(document), headers)


def json_reply(value: object) -> Reply:
    """An answer with ``value`` as JSON."""
    return Reply(200, msgspec.json.encode(value), [("Content-Type", "application/json")])


def message_reply(outcome: Outcome, token: Token) -> Reply:
    """What a client is told of its message. Raises Problem for every outcome but 200."""
    if outcome.status != 200:
        retry_after = 1 if outcome.status in (503, 507) else None
        raise Problem(outcome.status, outcome.problem, outcome.detail, retry_after=retry_after)
    headers = [
        ("Content-Type", "application/json"),
        ("Message-Id", token.message_id.hex()),
        ("Served-By", outcome.server),
    ]
    if outcome.replayed:
        headers.append(("Idempotent-Replayed", "true"))
    return Reply(200, _ACCEPTED, headers)
