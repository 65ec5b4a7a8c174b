"""Seals stored messages anew with their clients' newest keys, while servers go on storing.

A message stays what it is: its id is that of the token that was sent, its time that at which it was
sealed. Only what is stored changes, so that the older key is needed no more. No server takes the
token that is stored then for a message.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from sealrelay.keyrings import ClientKeys
from sealrelay.seal import Keyring, TokenMalformed, TokenNotOpened, parse_token
from sealrelay.store import LONGEST, PAUSE, NewToken, Record, SqlStore, insist

_SMALLEST_BATCH = 20
"""Messages; what fewer of them take is the commit."""
_LARGEST_BYTES = 1 << 20
"""Bytes of new tokens in one transaction, unless it is a single one."""


class _Client:
    """The keys of one client, as they are needed here."""

    def __init__(self, keys: ClientKeys) -> None:
        self.current = keys.open_current()
        self.all: Keyring | None = keys.open_all() if keys.newest else None

    def reseal(self, record: Record) -> NewToken | None:
        """A new token for a message, or None when it needs none. Raises TokenNotOpened."""
        token = parse_token(record.token)
        if self.current is not None:
            try:
                self.current.open(token)
            except TokenNotOpened:
                pass
            else:
                return None
        if self.all is None:
            raise TokenNotOpened("there is no key to seal it with")
        return NewToken(record.message_id, record.token, self.all.reseal(token))


class Resealer:
    """Goes through the store once, from the oldest message on."""

    def __init__(
        self, reader: SqlStore, writer: SqlStore, clients: Mapping[str, ClientKeys], batch: int
    ) -> None:
        """``reader`` and ``writer`` may be one. ``batch``: most messages in one transaction."""
        self._reader, self._writer = reader, writer
        self._clients = {name: _Client(keys) for name, keys in clients.items()}
        self._largest = batch
        self.looked_at = 0
        """Messages so far."""
        self.resealed = 0
        self.left: Counter[str] = Counter()
        """Messages that could not be resealed, by client: they still need the key they have."""

    def run(self, until: int, report: Callable[[], None]) -> None:
        """Reseal what was received up to a time (ms since the epoch).

        When it returns, what was done is as durable as a message that is acknowledged. May be
        stopped at any time; the next one finds what is left to do. Calls ``report`` now and then.

        Raises StoreError.
        """
        smallest = size = min(_SMALLEST_BATCH, self._largest)
        last: list[Record] = []
        while True:
            page = partial(self._reader.page, last[-1] if last else None, until, size)
            records = insist(page)
            if not records:
                break
            last = records
            began = time.monotonic()
            changes = [change for record in records if (change := self._reseal(record))]
            time.sleep(time.monotonic() - began)  # a processor that the servers may need
            slowest = max(map(self._replace, _split(changes)), default=0.0)
            self.looked_at += len(records)
            report()
            if slowest > LONGEST:
                size = max(size // 2, smallest)
            elif slowest < LONGEST / 2:
                size = min(size + size // 2 + 1, self._largest)
            if sum(len(record.token) for record in records) > _LARGEST_BYTES:
                size = smallest
        if last:
            self._confirm([record.message_id for record in last])

    def _reseal(self, record: Record) -> NewToken | None:
        client = self._clients.get(record.client)
        try:
            if client is None:
                raise TokenNotOpened("its client has no keys here")
            return client.reseal(record)
        except (TokenNotOpened, TokenMalformed):
            self.left[record.client] += 1
            return None

    def _replace(self, changes: list[NewToken]) -> float:
        """Returns the seconds that it took, the commit aside."""
        replaced = insist(partial(self._writer.replace_tokens, changes))
        self.resealed += replaced.replaced
        time.sleep(PAUSE * replaced.holding)
        return replaced.replacing

    def _confirm(self, message_ids: list[bytes]) -> None:
        # What was seen of any of them was written before; so when this is durable, all of it is.
        insist(partial(self._writer.confirm, message_ids))


def _split(changes: Iterable[NewToken]) -> Iterator[list[NewToken]]:
    """In transactions that are small enough."""
    part: list[NewToken] = []
    length = 0
    for change in changes:
        if part and length + len(change.new) > _LARGEST_BYTES:
            yield part
            part, length = [], 0
        part.append(change)
        length += len(change.new)
    if part:
        yield part
