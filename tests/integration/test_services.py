"""Services as a host runs them: started, probed, changed, and what their processes hold."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealrelay.seal import generate_keyring
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, Service, run_sealrelay, wait_until


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("services") / "deployment")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def deployed(own_deployment: Deployment) -> Deployment:
    own_deployment.start()
    return own_deployment


def test_probe_tells_a_running_service_from_a_stopped_one(deployed: Deployment) -> None:
    for service in (deployed.coordinator, deployed.servers[0]):
        probed = service.probe()
        assert (probed.code, probed.err) == (0, "")
        assert probed.out.startswith(f"{service.name} answers: version ")
        service.stop()
        probed = service.probe()
        assert (probed.code, probed.out) == (3, "")
        assert probed.err == (
            f"sealrelay: {service.name} does not answer at 127.0.0.1:{service.port}: "
            "Connection refused\n"
        )


def test_probe_waits_for_a_service_that_is_starting(deployed: Deployment) -> None:
    server = deployed.servers[1]
    server.stop()
    server.start(wait=False)
    assert server.probe("--wait", str(PATIENCE)).code == 0


def test_probe_is_not_deceived_by_another_service(deployed: Deployment, tmp_path: Path) -> None:
    one, two = deployed.servers
    config = one.config.with_name("other.toml")
    config.write_text(one.config.read_text().replace(f":{one.port}", f":{two.port}"))
    probed = run_main("probe", "--config", str(config))
    assert probed.code == 3
    assert "spiffe://sealrelay.internal/server/server2 answers there" in probed.err


def test_service_is_ready_for_systemd_when_it_answers(deployed: Deployment, tmp_path: Path) -> None:
    """And not before: gunicorn says so of itself before there is a worker."""
    for service in (deployed.coordinator, deployed.servers[0]):
        service.stop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.settimeout(PATIENCE)
            systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            address = str(tmp_path / service.kind)
            systemd.bind(address)
            folder = str(service.config.parent)
            service.start(
                wait=False,
                env={**os.environ, "RUNTIME_DIRECTORY": folder, "NOTIFY_SOCKET": address},
            )
            said, ((_, _, credentials),), *_ = systemd.recvmsg(100, 100)
        assert said == b"READY=1"
        assert service.workers
        assert struct.unpack("iII", credentials)[0] == min(service.processes), "the master"
        assert service.probe().code == 0


def test_master_that_stands_still_gives_no_sign_of_life(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Nobody does it in its place, and systemd would believe nobody else."""
    service = deployment.servers[0]
    service.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE)
        address = str(tmp_path / "notify")
        systemd.bind(address)
        folder = str(service.config.parent)
        service.start(
            env={
                **os.environ,
                "RUNTIME_DIRECTORY": folder,
                "NOTIFY_SOCKET": address,
                "WATCHDOG_USEC": "30000000",
            }
        )
        said = {systemd.recv(100) for _ in range(4)}
        assert said == {b"READY=1", b"WATCHDOG=1"}
        master = min(service.processes)
        os.kill(master, signal.SIGSTOP)
        try:
            systemd.settimeout(3)
            with contextlib.suppress(TimeoutError):
                # one that was on its way, and no more
                assert systemd.recv(100) == b"WATCHDOG=1"
                pytest.fail(f"said while it stood still: {systemd.recv(100)!r}")
            assert service.probe().code == 0, "its worker goes on"
        finally:
            os.kill(master, signal.SIGCONT)
        assert systemd.recv(100) == b"WATCHDOG=1"
    service.stop()
    service.start()


def test_probe_of_a_client_is_refused(deployed: Deployment) -> None:
    probed = run_main("probe", "--config", str(deployed.client_config("client1")))
    assert probed.code == 8
    assert "only servers and coordinators run" in probed.err


def assert_outdated(service: Service, changed: Path, *options: str) -> None:
    probed = service.probe("--current", *options)
    assert (probed.code, probed.out) == (9, "")
    assert probed.err == f"sealrelay: {service.name} was started before {changed} changed\n"
    assert service.probe().code == 0


def test_changed_input_makes_a_service_outdated_until_it_is_restarted(
    deployed: Deployment, tmp_path: Path
) -> None:
    server, coordinator = deployed.servers[0], deployed.coordinator
    unit = tmp_path / "unit.service"
    unit.touch()
    deployed.restart(server, coordinator)
    for service in (server, coordinator):
        current = service.probe("--current", "--input", str(unit), "--input", "/nonexistent")
        assert (current.code, current.err) == (0, "")

    for name in ("ca.pem", "key.pem", "cert.pem"):
        (server.config.parent / name).touch()
    (deployed.keyrings / "client9.keys").write_text(generate_keyring())
    assert server.probe("--current").code == 0, "these it reloads"

    os.utime(server.config, (0, 0))  # put in place with an old date, as a backup is
    assert_outdated(server, server.config)
    deployed.restart(server)
    assert server.probe("--current").code == 0

    unit.touch()
    assert server.probe("--current").code == 0
    assert_outdated(server, unit, "--input", str(unit))


def test_added_keyring_is_used_after_a_restart_and_rotation_keeps_old_tokens(
    deployed: Deployment,
) -> None:
    keyring = deployed.keyrings / "client1.keys"
    old = keyring.read_text()
    with deployed.client() as client:
        sealed_before = client.seal("sealed with the old key")
    new = generate_keyring()
    keyring.write_text(new + old)  # newest first, older ones kept
    deployed.client_config("client1").with_name("payload.keys").write_text(new)
    deployed.restart(*deployed.servers)
    with deployed.client() as client:
        after = client.send("sealed with the new key").message_id
        before = client.send_token(sealed_before).message_id
    for name, text in ((after, "new"), (before, "old")):
        shown = run_main("messages", "show", name, "--config", str(deployed.servers[0].config))
        assert shown.out.endswith(f"  sealed with the {text} key\n")


def test_service_with_wrong_settings_does_not_start(deployed: Deployment) -> None:
    config = deployed.servers[0].config
    wrong = config.with_name("wrong.toml")
    wrong.write_text(config.read_text().replace("[tls]", "retention = 5\n[tls]"))
    result = run_sealrelay("server", "--config", str(wrong))
    assert (result.returncode, result.stdout) == (8, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"sealrelay: {wrong}: retention: ")


def test_service_whose_store_cannot_be_opened_ends_with_a_reason(deployed: Deployment) -> None:
    config = deployed.servers[0].config
    (config.parent / "folder").mkdir()
    wrong = config.with_name("wrong.toml")
    store = f"sqlite:///{deployed.folder}/messages.db"
    wrong.write_text(config.read_text().replace(store, f"sqlite:///{config.parent}/folder"))
    deployed.servers[0].stop()
    result = run_sealrelay("server", "--config", str(wrong))
    assert result.returncode != 0
    assert "the store failed: unable to open database file" in result.stderr
    assert "Traceback" not in result.stderr


def test_service_without_schema_says_at_once_how_to_make_one(deployed: Deployment) -> None:
    """And makes nothing itself: which release made what must be plain."""
    config = deployed.servers[0].config
    early = config.with_name("early.toml")
    early.write_text(config.read_text().replace("messages.db", "new.db"))
    deployed.servers[0].stop()
    result = run_sealrelay("server", "--config", str(early))
    assert result.returncode != 0
    assert "the store's schema is missing, this release needs " in result.stderr
    assert "run `sealrelay migrate`" in result.stderr
    assert "Waiting for the store" not in result.stderr
    assert not (deployed.folder / "new.db").exists()


def test_payloads_are_logged_only_where_it_is_asked_for(deployed: Deployment) -> None:
    with deployed.client() as client:
        client.send("a text for the log")
        wait_until(lambda: any("a text for the log" in s.log for s in deployed.servers), "logged")
    marks = [len(server.log) for server in deployed.servers]
    for server in deployed.servers:
        text = server.config.read_text()
        server.config.write_text(text.replace("log_payloads = true", "log_payloads = false"))
    deployed.restart(*deployed.servers)
    with deployed.client() as client:
        receipts = [client.send("a text not for the log") for _ in range(8)]
    for receipt in receipts:
        server = next(each for each in deployed.servers if each.name == receipt.served_by)
        server.await_line(f"Stored message {receipt.message_id} from client1")
    logs = "".join(server.log[mark:] for server, mark in zip(deployed.servers, marks, strict=True))
    assert "Decrypted data" not in logs
    assert "a text not" not in logs


def _memory_of(pid: int) -> Iterator[bytes]:
    """All that a process may write to; reading it needs root, or a lenient system."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_ = line.split()
            begin, end = (int(part, 16) for part in span.split("-"))
            if permissions.startswith("rw"):
                try:
                    memory.seek(begin)
                    yield memory.read(end - begin)
                except (OSError, ValueError, OverflowError):
                    continue


def _places(service: Service) -> Iterator[tuple[str, bytes]]:
    yield "log", service.log_file.read_bytes()
    for pid in service.processes:
        for name in ("environ", "cmdline"):
            yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            yield f"open file of {pid}", os.fsencode(link.readlink())
        for part in _memory_of(pid):
            yield f"memory of {pid}", part


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a service's memory")
def test_no_plaintext_and_no_payload_key_is_anywhere_in_the_coordinator(
    deployed: Deployment,
) -> None:
    with deployed.client() as client:
        receipts = [client.send(f"plaintext-{number}-of-this-test") for number in range(20)]
    keys = [
        line.encode()
        for file in deployed.keyrings.glob("*.keys")
        for line in file.read_text().splitlines()
        if not line.startswith("#")
    ]
    halves = [raw[half : half + 16] for raw in map(urlsafe_b64decode, keys) for half in (0, 16)]
    for receipt in receipts:
        deployed.coordinator.await_line(receipt.message_id)
    for place, held in _places(deployed.coordinator):
        for secret in (*keys, *halves, b"-of-this-test"):
            assert secret not in held, f"{secret!r} in the {place}"
        if place.startswith("open file"):
            assert not held.endswith((b".keys", b"messages.db"))
    # and what a server holds in its memory is found there
    held_by_server = b"".join(held for _, held in _places(deployed.servers[0]))
    assert any(half in held_by_server for half in halves)
