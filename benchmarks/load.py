"""The load generator's process, as the benchmark sees it."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPSConnection

import msgspec

from benchmarks.peers import Running
from benchmarks.spec import ClientFiles, LoadResult, LoadSpec
from sealrelay.seal import parse_keyring

_READY_DEADLINE = 60.0
_GOOD_IN_A_ROW = 20


class RelayFailed(Exception):
    """A relay that does not do its work even before anything is measured. Holds its log's end."""


class Load:
    """A load that is ready to begin: sealed, rendered, connected."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def begin(self) -> float:
        """Let it begin; returns when that was (``time.monotonic``)."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        return float(self._read_line())

    def result(self) -> LoadResult:
        """Wait for the end, and tell what became of the messages."""
        return msgspec.json.decode(self._read_line(), type=LoadResult)

    def wait_until_ready(self) -> None:
        self._read_line()

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RelayFailed("the load generator could not go on")
        return line


@contextmanager
def make_load(spec: LoadSpec) -> Iterator[Load]:
    """Start a generator and wait until it is ready; it is ended afterwards."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "benchmarks.generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        process.stdin.flush()
        load = Load(process)
        load.wait_until_ready()
        yield load
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def wait_for_relay(relay: Running, client: ClientFiles) -> int:
    """Send messages through a relay until it answers them all. Returns how many were stored.

    Raises RelayFailed when that takes longer than a minute.
    """
    context = ssl.create_default_context(cafile=f"{client.folder}/ca.pem")
    context.load_cert_chain(f"{client.folder}/cert.pem", f"{client.folder}/key.pem")
    keyring = parse_keyring(client.keys.splitlines())
    deadline = time.monotonic() + _READY_DEADLINE
    stored = in_a_row = 0
    last = "no answer"
    while in_a_row < _GOOD_IN_A_ROW:
        if time.monotonic() > deadline or not relay.program.is_running:
            log = relay.program.log.read_text(errors="replace")[-2000:]
            raise RelayFailed(f"{last}\n{log}")
        connection = HTTPSConnection("localhost", relay.port, timeout=5, context=context)
        body = msgspec.json.encode({"data": keyring.seal(b"are you there?").text})
        try:
            connection.request("POST", "/api/data", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            last = f"{answer.status} {answer.read()!r}"
            good = answer.status == 200
        except (OSError, HTTPException) as error:
            good, last = False, str(error)
        finally:
            connection.close()
        stored += good
        in_a_row = in_a_row + 1 if good else 0
        if not good:
            time.sleep(0.05)
    return stored


def sleep_until(moment: float) -> None:
    """Sleep until ``time.monotonic`` says ``moment``."""
    time.sleep(max(0.0, moment - time.monotonic()))
