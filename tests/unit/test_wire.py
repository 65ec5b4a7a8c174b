"""What travels between a coordinator and a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sealrelay.wire import BatchAnswer, BatchMessage, BatchRequest, DataRequest, Outcome


def test_batch_is_read_as_it_was_written() -> None:
    batch = BatchRequest([BatchMessage("client1", "token1"), BatchMessage("client2", "token2")])
    assert msgspec.json.decode(msgspec.json.encode(batch), type=BatchRequest) == batch


def test_answer_is_read_as_it_was_written() -> None:
    answer = BatchAnswer(
        [
            Outcome(200),
            Outcome(200, replayed=True),
            Outcome(422, problem="token-refused", detail="The token is refused."),
        ]
    )
    assert msgspec.json.decode(msgspec.json.encode(answer), type=BatchAnswer) == answer


def test_answer_may_say_more_than_an_older_coordinator_knows() -> None:
    """Servers are updated one at a time, so both sides meet other releases of each other."""
    text = b'{"outcomes": [{"status": 200, "news": 1}], "more": true}'
    assert msgspec.json.decode(text, type=BatchAnswer) == BatchAnswer([Outcome(200)])


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (DataRequest, b'{"data": "x", "client": "client2"}'),
        (DataRequest, b'{"data": 1}'),
        (DataRequest, b'{"data": null}'),
        (DataRequest, b'{"Data": "x"}'),
        (DataRequest, b"{}"),
        (DataRequest, b"[]"),
        (DataRequest, b'"x"'),
        (DataRequest, b""),
        (DataRequest, b'{"data": "x"} {}'),
        (BatchRequest, b'{"messages": [{"data": "x"}]}'),
        (BatchRequest, b'{"messages": [{"client": "c", "data": "x", "id": 1}]}'),
        (BatchRequest, b'{"messages": {}}'),
        (BatchRequest, b"{}"),
    ],
)
def test_request_of_another_form_is_refused(kind: Any, body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body, type=kind)
