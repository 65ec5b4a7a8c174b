"""What travels between a coordinator and a server: batches of messages, and an answer for each."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sealrelay.identity import NAME


class DataRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /api/data``: one sealed message."""

    data: str


class BatchMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a batch: the token, and the client that the coordinator authenticated."""

    client: Annotated[str, msgspec.Meta(pattern=rf"^{NAME.pattern}\Z")]
    data: str


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /api/batch``."""

    messages: list[BatchMessage]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
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
