"""``python -m benchmarks.batches``: what a batch costs a server, by the messages in it.

One coordinator's connection, one batch at a time, so nothing waits for anything else: what a batch
takes whatever is in it, and what each message adds, can be read from the rows.
"""

from __future__ import annotations

import http.client
import ssl
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from benchmarks.options import PAYLOAD_BYTES, folder_option
from benchmarks.processes import cpu_seconds
from benchmarks.testbed import CLIENTS, Measurement, Testbed
from sealrelay.seal import Keyring, parse_keyring
from sealrelay.wire import BatchAnswer, BatchMessage, BatchRequest

_SIZES = (1, 4, 8, 16, 32, 64)
_HEADERS = {"Content-Type": "application/json"}


@click.command()
@click.option("--batches", type=click.IntRange(10, 10_000), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@folder_option
def main(batches: int, rounds: int, folder: Path) -> None:
    """Time batches of several sizes; of several rounds, the best of each size is shown."""
    with tempfile.TemporaryDirectory(prefix="sealrelay-batches-", dir=folder) as temporary:
        testbed = Testbed(Path(temporary) / "testbed")
        keyring = parse_keyring(testbed.clients[0].keys.splitlines())
        with testbed.measurement() as measurement:
            connection = _connect(testbed, measurement)
            of_server = measurement.servers[0].processes
            found: dict[int, list[tuple[float, float]]] = {size: [] for size in _SIZES}
            for _ in range(rounds):
                for size, times in found.items():
                    bodies = [_make_body(keyring, size) for _ in range(batches)]
                    began, used = time.perf_counter(), cpu_seconds(of_server)
                    for body in bodies:
                        _send(connection, body, size)
                    spent = cpu_seconds(of_server) - used
                    times.append(((time.perf_counter() - began) / batches, spent / batches))
            connection.close()
    click.echo("messages  ms a batch  processor ms a batch")
    for size, times in found.items():
        wall, cpu = (min(values) * 1000 for values in zip(*times, strict=True))
        click.echo(f"{size:8}  {wall:10.2f}  {cpu:20.2f}")


def _connect(testbed: Testbed, measurement: Measurement) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(testbed.relay.ca))
    context.load_cert_chain(testbed.relay.cert, testbed.relay.key)
    return http.client.HTTPSConnection("localhost", measurement.ports[0], context=context)


def _make_body(keyring: Keyring, size: int) -> bytes:
    tokens: Sequence[str] = [keyring.seal(b"x" * PAYLOAD_BYTES).text for _ in range(size)]
    return msgspec.json.encode(BatchRequest([BatchMessage(CLIENTS[0], text) for text in tokens]))


def _send(connection: http.client.HTTPSConnection, body: bytes, size: int) -> None:
    connection.request("POST", "/api/batch", body, _HEADERS)
    answer = msgspec.json.decode(connection.getresponse().read(), type=BatchAnswer)
    if [outcome.status for outcome in answer.outcomes] != [200] * size:
        raise click.ClickException(f"not stored: {answer.outcomes}")


if __name__ == "__main__":
    main()
