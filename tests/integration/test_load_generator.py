"""The benchmarks' load generator, against a server that behaves badly on purpose."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest

from benchmarks.load import make_load
from benchmarks.spec import ClientFiles, LoadResult, LoadSpec
from sealrelay.seal import generate_keyring
from sealrelay.tls import TlsFiles, TlsSet
from tests.support.pki import CLIENT_ONLY, Authority, Leaf, spiffe_id

Serve = Callable[[BaseHTTPRequestHandler], None]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    context: ssl.SSLContext

    def get_request(self) -> tuple[ssl.SSLSocket, object]:
        sock, address = super().get_request()
        # the handshake is left to the connection's own thread
        return self.context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False
        ), address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    authority = Authority()
    authority.issue(folder / "relay", Leaf([spiffe_id("coordinator", "relay")]))
    leaf = Leaf([spiffe_id("client", "client1")], hosts=(), usages=CLIENT_ONLY)
    authority.issue(folder / "client", leaf)
    return folder


@contextlib.contextmanager
def serve(folder: Path, answer: Serve) -> Iterator[int]:
    """A TLS server with a thread for each connection; yields its port."""
    files = {name: str(folder / "relay" / f"{name}.pem") for name in ("cert", "key", "ca")}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                super().handle()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *_arguments: object) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        server.context = TlsSet(msgspec.convert(files, TlsFiles)).make_server_context()
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def say_ok(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "2")
    request.end_headers()
    request.wfile.write(b"ok")


def run(folder: Path, port: int, **changes: float) -> LoadResult:
    options: dict[str, float] = {"connections": 2, "seconds": 1.0, "rate": 0.0, **changes}
    spec = LoadSpec(
        port=port,
        clients=[ClientFiles(str(folder / "client"), generate_keyring())],
        connections=int(options["connections"]),
        messages=4000,
        payload_bytes=16,
        seconds=options["seconds"],
        rate=options["rate"],
        drain=options.get("drain", 30.0),
    )
    with make_load(spec) as load:
        load.begin()
        return load.result()


def test_messages_leave_on_time_although_nobody_answers(folder: Path) -> None:
    """No coordinated omission: what stalls costs every message that was due meanwhile."""
    everybody = threading.Barrier(40)

    def stall(request: BaseHTTPRequestHandler) -> None:
        everybody.wait(60)
        say_ok(request)

    with serve(folder, stall) as port:
        answers = run(folder, port, rate=40.0).answers
    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.due for answer in answers) == pytest.approx(
        [number / 40 for number in range(40)]
    )
    last = max(answer.due for answer in answers)
    assert all(answer.due + answer.seconds >= last for answer in answers)


def test_closed_loop_sends_the_next_message_when_one_is_answered(folder: Path) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def watch(request: BaseHTTPRequestHandler) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        with lock:
            under_way -= 1
        say_ok(request)

    with serve(folder, watch) as port:
        result = run(folder, port, connections=3)
    assert len(result.answers) > 10
    assert most <= 3
    assert len({answer.message_id for answer in result.answers}) == len(result.answers)


def test_connection_that_is_closed_after_an_answer_is_opened_again(folder: Path) -> None:
    def close(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.send_header("Connection", "close")
        request.end_headers()

    with serve(folder, close) as port:
        result = run(folder, port)
    assert {answer.status for answer in result.answers} == {200}
    assert result.reconnects >= len(result.answers) > 2


def test_message_without_an_answer_has_failed(folder: Path) -> None:
    def vanish(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True

    with serve(folder, vanish) as port:
        answers = run(folder, port, rate=20.0).answers
    assert [answer.status for answer in answers] == [0] * 20


def test_message_that_is_never_answered_has_failed_in_the_end(folder: Path) -> None:
    gate = threading.Event()

    def wait(_request: BaseHTTPRequestHandler) -> None:
        gate.wait(60)

    with serve(folder, wait) as port:
        answers = run(folder, port, rate=10.0, drain=0.5).answers
        gate.set()
    assert [answer.status for answer in answers] == [0] * 10
    assert max(answer.seconds for answer in answers) >= 0.5
