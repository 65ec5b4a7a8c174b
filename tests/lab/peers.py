"""Plain HTTP clients on the node, with the leaves that are there or with wrong ones."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import Fernet

from tests.support.node import Node

CLIENT1 = "/etc/sealrelay/clients/client1"
COORDINATOR = "/etc/sealrelay/coordinator"
SERVER = "/etc/sealrelay/servers/5001"
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back: an answer, or the error that took its place."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    error: str = ""
    accepted: bool = False

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457) that was answered."""
        assert self.header("Content-Type") == "application/problem+json"
        problem: dict[str, Any] = json.loads(self.body)
        return problem


class Peer:
    """A program on the node with a leaf, which trusts our CA."""

    def __init__(self, node: Node, folder: str | None, ca: str = f"{CLIENT1}/ca.pem") -> None:
        self._node = node
        self._tls = {"ca": ca}
        if folder:
            self._tls |= {"cert": f"{folder}/cert.pem", "key": f"{folder}/key.pem"}

    def ask(self, port: int, method: str, path: str, **more: Any) -> Answer:
        return self._run({"port": port, "method": method, "path": path, **more})

    def post(self, token: str) -> Answer:
        """Hand a token to the coordinator."""
        return self.post_body(json.dumps({"data": token}))

    def post_body(self, body: str) -> Answer:
        return self.ask(8000, "POST", "/api/data", body=body, headers=_JSON)

    def shake_hands(self, port: int, **more: Any) -> Answer:
        return self._run({"port": port, "handshake": True, **more})

    def _run(self, spec: dict[str, Any]) -> Answer:
        answer = self._node.program("http_request", {**self._tls, **spec})
        return Answer(
            status=answer.get("status", 0),
            headers=tuple(answer.get("headers", {}).items()),
            body=answer.get("body", ""),
            error=answer.get("error", ""),
            accepted=answer.get("accepted", False),
        )


def read_keys(keyring: str) -> list[str]:
    """The keys in the text of a keyring."""
    return [line for line in keyring.split("\n") if line and not line.startswith("#")]


def seal(node: Node, text: str, client: str = "client1") -> str:
    """Seal as a client's own program would; its key stays in this process's memory."""
    (key, *_) = read_keys(node.read(f"/etc/sealrelay/clients/{client}/payload.keys"))
    return Fernet(key).encrypt(text.encode()).decode()


def message_id(token: str) -> str:
    return base64.urlsafe_b64decode(token)[-32:].hex()


def flip_byte(token: str) -> str:
    """The token with one byte of its ciphertext changed, in the same spelling otherwise."""
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[30] ^= 1
    return base64.urlsafe_b64encode(bytes(raw)).decode()
