"""``sealrelay load`` on a lab node, beside whatever a test does meanwhile."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any

from typing_extensions import Self

from tests.support.node import Node, wait_for

# Ended by closing its standard input, which SSH passes on.
_RUN = '"$@" & load=$!; cat >/dev/null; kill $load; wait $load'
# As the services: a niceness counts within its session only, where the kernel groups by those.
_COME_FIRST = "renice -n -10 -p $$ >/dev/null; echo -10 2>/dev/null >/proc/$$/autogroup; "


class Load:
    """Messages of clients at a steady rate, for as long as the ``with`` lasts."""

    def __init__(
        self,
        node: Node,
        folder: str,
        clients: tuple[str, ...] = ("client1", "client2"),
        rate: int = 50,
        seconds: int = 1200,
        *,
        elsewhere: bool = False,
    ) -> None:
        """``folder`` is one on the node, for the history. ``rate``: messages a second.

        After ``seconds`` it ends by itself. ``elsewhere``: it stands for clients on other hosts, so
        what the node computes besides doesn't keep it from sending in time.
        """
        self._node, self.path = node, f"{folder}/history"
        self._prepare = _COME_FIRST if elsewhere else ""
        self._arguments = ["--rate", str(rate), "--seconds", str(seconds), "-q", self.path]
        for client in clients:
            self._arguments += ["--client", client]

    def __enter__(self) -> Self:
        self._process = self._node.start(
            *("sh", "-c", self._prepare + _RUN, "sh"),
            *("sealrelay", "load", *self._arguments),
        )
        self._out = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            wait_for(lambda: len(self.history) > 1, "messages are sent")
        except BaseException:
            self._end()
            raise
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._out = self._process.stdout.read()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        with self._process as process:  # which closes its pipes
            assert process.stdin is not None
            process.stdin.close()
            try:
                self.code = process.wait(90)
            finally:
                process.kill()  # else its pipes would be waited for
                self._reader.join()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The history's lines, so far."""
        whole, _, _ = self._node.try_run("cat", self.path).stdout.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def assert_all_well(self) -> None:
        """Every message was acknowledged, and the store bears it out."""
        out = self._out.decode()
        assert self.code == 0, out
        assert " 0 refused, 0 without an answer" in out
        self.assert_borne_out()

    def assert_borne_out(self) -> None:
        """Whatever was acknowledged is stored, once."""
        verified = self._node.run("sealrelay", "verify", self.path)
        assert "The store bears out the history." in verified
