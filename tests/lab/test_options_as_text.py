"""What ``-e key=value`` says is text, and means the same as in the inventory."""

from __future__ import annotations

import pytest

from tests.support.node import Control

_AS_TEXT = {
    "certificate_renew_at": "0.667",
    "certificate_validity_days": "365",
    "client_deadline": "30",
    "client_names": "client1,client2",
    "coordinator_backlog": "4096",
    "coordinator_deadline": "10.0",
    "coordinator_port": "8000",
    "coordinator_workers": "1",
    "preflight_min_free_mb": "100",
    "server_log_payloads": "yes",
    "server_ports": "5001,5002",
    "server_retention": "604800",
    "server_token_ttl": "86400",
    "server_workers": "1",
}


def _say(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in ("-e", f"{name}={value}")]


def test_options_given_as_text_change_nothing(control: Control) -> None:
    play = control.deploy(*_say(_AS_TEXT))
    assert (play.code, play.changed) == (0, 0), play.out


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("coordinator_deadline", "soon", "is 'soon', and has to be a number"),
        ("server_workers", "1.5", "is '1.5', and has to be a whole number"),
        ("server_ports", "5001,ssh", "is '5001,ssh', and has to be a list"),
        ("server_log_payloads", "perhaps", "is 'perhaps', and has to be true or false"),
    ],
)
def test_text_that_can_not_be_meant_is_refused_by_its_name(
    control: Control, name: str, value: str, fault: str
) -> None:
    play = control.deploy(*_say({name: value}))
    assert play.code != 0
    assert f"{name} of node1 {fault}" in play.text
    assert play.changed == 0
