"""``python -m benchmarks.profile``: where the processor time of a message goes.

Runs the coordinator and two servers under closed-loop load, samples one process with py-spy, and
adds up the samples by what the innermost frame that is known is for.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from benchmarks.load import make_load, sleep_until, wait_for_relay
from benchmarks.options import PAYLOAD_BYTES, folder_option
from benchmarks.peers import PEERS
from benchmarks.processes import Program
from benchmarks.spec import LoadSpec
from benchmarks.testbed import Testbed

_RATE = 400
"""Samples a second."""
_WARM_UP = 1.0
_PATIENCE = 30.0
_MOST_PER_SECOND = 16_000

PARTS = (
    ("waiting", ("gevent/_threading.py", "Hub.run (gevent")),
    ("TLS", ("gevent/ssl.py", "(ssl.py")),
    ("log lines", ("(logging/", "(sealrelay/journal")),
    ("Fernet", ("(cryptography/fernet",)),
    ("the store", ("(sealrelay/store/", "(sqlalchemy/")),
    ("HTTP to the servers", ("(sealrelay/dispatch/connection", "(http/")),
    ("dispatch", ("(sealrelay/dispatch/",)),
    (
        "admission and bodies",
        ("(sealrelay/web", "(sealrelay/tls", "(sealrelay/trust", "(sealrelay/seal"),
    ),
    ("HTTP from the peers", ("(sealrelay/quick", "(gunicorn/", "(sealrelay/worker")),
    ("the rest of the application", ("(sealrelay/", "(flask/", "(werkzeug/")),
)
"""What frames stand for, by pieces of py-spy's text for them; the first that fits counts."""


def name_part(stack: str) -> str:
    """What a sample is for: the innermost frame that is known decides. ``stack``: ``a;b;c``."""
    for frame in reversed(stack.split(";")):
        for name, pieces in PARTS:
            if any(piece in frame for piece in pieces):
                return name
    return "the event loop"


def add_up(lines: Iterable[str]) -> dict[str, float]:
    """Shares (0 to 1) of the parts, the largest first; ``lines`` as ``py-spy --format raw`` has
    them. What waits takes no time and is left out."""
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        counts[name_part(stack)] += int(count)
    del counts["waiting"]
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


@click.command()
@click.option("--connections", type=click.IntRange(1, 1000), default=64, show_default=True)
@click.option("--seconds", type=click.FloatRange(2, 600), default=10.0, show_default=True)
@folder_option
def main(connections: int, seconds: float, folder: Path) -> None:
    """Show where the coordinator's and a server's processor time goes. Needs root."""
    if shutil.which("py-spy", path=str(Path(sys.executable).parent)) is None:
        raise click.ClickException("py-spy is not installed here: bin/bootstrap --with bench")
    with tempfile.TemporaryDirectory(prefix="sealrelay-profile-", dir=folder) as temporary:
        testbed = Testbed(Path(temporary) / "testbed")
        for process in ("coordinator", "server"):
            shares = _profile(testbed, process, connections, seconds)
            click.echo(f"{process}, {connections} connections:")
            for name, share in shares.items():
                click.echo(f"  {share:6.1%}  {name}")


def _profile(testbed: Testbed, process: str, connections: int, seconds: float) -> dict[str, float]:
    with (
        testbed.measurement() as measurement,
        PEERS["sealrelay"].run(testbed, measurement) as relay,
    ):
        wait_for_relay(relay, testbed.clients[0])
        workers = {
            "coordinator": relay.program.processes,
            "server": measurement.servers[0].workers,
        }[process]
        spec = LoadSpec(
            port=relay.port,
            clients=testbed.clients,
            connections=connections,
            messages=int((seconds + 2 * _WARM_UP) * _MOST_PER_SECOND),
            payload_bytes=PAYLOAD_BYTES,
            seconds=seconds + 2 * _WARM_UP,
        )
        samples = measurement.folder / "samples"
        with make_load(spec) as load:
            began = load.begin()
            sleep_until(began + _WARM_UP)
            spy = Program(
                [
                    str(Path(sys.executable).with_name("py-spy")),
                    *("record", "--format", "raw", "--rate", str(_RATE)),
                    *("--duration", str(int(seconds)), "--pid", str(max(workers))),
                    *("--output", str(samples)),
                ],
                measurement.folder / "py-spy.log",
            )
            load.result()
            _wait_for(spy)
        if not samples.exists():
            raise click.ClickException(spy.log.read_text(errors="replace"))
        return add_up(samples.read_text().splitlines())


def _wait_for(spy: Program) -> None:
    deadline = time.monotonic() + _PATIENCE
    while spy.is_running and time.monotonic() < deadline:
        time.sleep(0.1)
    spy.stop()


if __name__ == "__main__":
    main()
