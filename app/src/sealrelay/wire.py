"""What travels between a coordinator and a server: batches, an answer for each, and its health."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sealrelay.identity import NAME
from sealrelay.text import escape_text

_LAST_MOMENT = 253_402_300_799
"""Of any certificate: the end of the year 9999 (RFC 5280 §4.1.2.5), in seconds since the epoch."""

Moment = Annotated[float, msgspec.Meta(ge=0, le=_LAST_MOMENT)]
"""Seconds since the epoch."""


class DataRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /api/data``: one sealed message."""

    data: str


class BatchMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One message of a batch: the token, and the client that the coordinator authenticated."""

    client: Annotated[str, msgspec.Meta(pattern=rf"^{NAME.pattern}\Z")]
    data: str


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /api/batch``."""

    messages: list[BatchMessage]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of one message: 200 and perhaps ``replayed``, or a problem (RFC 9457)."""

    status: int
    replayed: bool = False
    server: Annotated[str, msgspec.Meta(pattern=rf"^({NAME.pattern})?\Z")] = ""
    """The server that stored it, now or before."""
    problem: str = ""
    """The problem's name, such as ``token-refused``; empty for status 200."""
    detail: str = ""


class BatchAnswer(msgspec.Struct, frozen=True):
    """Body of the answer to ``POST /api/batch``: one outcome for each message, in their order."""

    outcomes: list[Outcome]


class ProblemAnswer(msgspec.Struct, frozen=True):
    """What a server says of a request that it refuses (RFC 9457), as far as it is told."""

    detail: Annotated[str, msgspec.Meta(max_length=200)] = ""


def read_reason(payload: bytes) -> str:
    """What a refusal says of itself, to stand behind its status; nothing where it says nothing."""
    try:
        detail = msgspec.json.decode(payload, type=ProblemAnswer).detail
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return f": {escape_text(detail)}" if detail else ""


class Expiries(msgspec.Struct, frozen=True):
    """When what a service uses runs out; None: not known, or there is none."""

    cert: Moment | None = None
    """Its leaf."""
    ca: Moment | None = None
    """The first of the CAs that it trusts."""
    crl: Moment | None = None
    """When the next CRL is due."""


class HealthAnswer(msgspec.Struct, frozen=True):
    """What ``GET /healthz`` answers, as far as coordinators look at it. Older releases say less."""

    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    started: Moment | None = None
    expires: Expiries = Expiries()
