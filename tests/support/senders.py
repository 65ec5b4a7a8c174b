"""Clients that send without pause while something happens to the services."""

from __future__ import annotations

import gc
import threading
from types import TracebackType

from typing_extensions import Self

from sealrelay.client import Receipt
from tests.support.deployment import PATIENCE, Deployment, wait_until

CLIENTS = ("client1", "client2")


class Senders:
    """A thread for each client, which sends from entering the context to leaving it."""

    def __init__(self, deployment: Deployment, *names: str) -> None:
        self._deployment = deployment
        self._stop = threading.Event()
        self._sent: dict[str, list[Receipt]] = {name: [] for name in names or CLIENTS}
        self._threads = [threading.Thread(target=self._send, args=(name,)) for name in self._sent]
        self.failures: list[BaseException] = []
        self.retries: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.await_more()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        gc.collect()  # so that what a client left unclosed is told of here, not in a later test

    def _send(self, name: str) -> None:
        sent = self._sent[name]
        try:
            with self._deployment.client(name, on_retry=self.retries.append) as client:
                while not self._stop.is_set():
                    sent.append(client.send(f"message {len(sent)}"))
        except BaseException as error:  # noqa: BLE001 - told in assert_all_stored
            self.failures.append(error)

    @property
    def receipts(self) -> list[Receipt]:
        return [receipt for sent in self._sent.values() for receipt in sent]

    def await_more(self, number: int = 5, *, by: str | None = None) -> None:
        """Wait until each client has so many more messages stored, ``by`` this server if given."""

        def count() -> list[int]:
            return [
                sum(by in (None, receipt.served_by) for receipt in sent.copy())
                for sent in self._sent.values()
            ]

        before = count()
        wait_until(
            lambda: (
                bool(self.failures)
                or all(now - then >= number for now, then in zip(count(), before, strict=True))
            ),
            f"each client has {number} more messages stored" + (f" by {by}" if by else ""),
        )
        assert self.failures == []

    def assert_all_stored(self) -> None:
        """None failed, and each is in the store exactly once, by the server that said so."""
        assert self.failures == []
        with self._deployment.store() as store:
            stored = [(record.message_id.hex(), record.server) for record in store.newest()]
        ids = [message_id for message_id, _ in stored]
        assert len(set(ids)) == len(ids)
        acknowledged = [receipt.message_id for receipt in self.receipts]
        assert len(set(acknowledged)) == len(acknowledged)
        assert set(acknowledged) <= set(ids)
        fresh = {(r.message_id, r.served_by) for r in self.receipts if not r.replayed}
        assert fresh <= set(stored)
