"""A real deployment on loopback: gunicorn processes, mutual TLS, one store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from sealrelay.client import Client
from sealrelay.config import ServerSettings, load_settings
from sealrelay.seal import generate_keyring
from sealrelay.store import SqlStore, open_store
from tests.support.command import Result, run_main
from tests.support.pki import CLIENT_ONLY, TRUST_DOMAIN, Authority, Leaf, spiffe_id

PATIENCE = float(os.environ.get("SEALRELAY_TEST_PATIENCE", "60"))
"""Seconds for anything that should take one; generous, because machines are slow at times."""
_START_PATIENCE = max(PATIENCE, 60)
"""Seconds for a service to come up, which is never waited for in vain."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition. Fails the test after a while, saying ``what`` did not happen."""
    deadline = time.monotonic() + 2 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in {2 * PATIENCE:g} s: {what}"
        time.sleep(0.02)


class _Ports:
    """Ports that no other process of these tests takes before they are used.

    Each is a byte of one file, locked for as long as this process lives or has had few others
    since: tests run several at a time, and a service comes up a second after its port was chosen.
    """

    _KEPT = 500

    def __init__(self) -> None:
        path = Path(tempfile.gettempdir()) / f"sealrelay-tests-{os.getuid()}.ports"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._ours: deque[int] = deque()

    def take(self, port: int) -> bool:
        """Whether the port is ours from now on."""
        if port in self._ours:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        self._ours.append(port)
        if len(self._ours) > self._KEPT:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._ours.popleft())
        return True


_ports = _Ports()


def free_port() -> int:
    """A port that nobody uses, below those that the system gives to outgoing connections.

    One of those could be taken while a service that is to come back on it is stopped; and a probe
    of it could even be connected to itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)  # noqa: S311 - not a secret
        if not _ports.take(port):
            continue
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def _is_in(states: str, stat: Path) -> bool:
    """Whether a process or thread is in one of these states of proc(5), or gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in states
    except OSError:
        return True


def _is_alive(pid: int) -> bool:
    return not _is_in("ZX", Path(f"/proc/{pid}/stat"))


class Service:
    """One service process, its settings file and its log."""

    def __init__(self, kind: str, config: Path, port: int) -> None:
        self.kind, self.config, self.port = kind, config, port
        self.log_file = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "sealrelay", self.kind, "--config", str(self.config)]

    def start(self, *, wait: bool = True, **options: Any) -> None:
        self.spawn(self.command, **options)
        if wait:
            self.wait()

    def spawn(self, command: list[str], **options: Any) -> None:
        """Run ``command`` as the service. It ends when the tests are killed."""
        # as systemd does; a killed service leaves its folder behind, which is not to pile up
        options.setdefault("env", {**os.environ, "RUNTIME_DIRECTORY": str(self.config.parent)})
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def wait(self) -> None:
        """Wait until the service answers."""
        probed = self.probe("--wait", str(_START_PATIENCE))
        assert probed.code == 0, f"{probed.err}\n{self.log}"

    @property
    def name(self) -> str:
        """The service's name, as in its leaf."""
        return self.config.parent.name.partition("-")[2]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def workers(self) -> set[int]:
        """The process ids of gunicorn's workers."""
        assert self._process is not None
        master = self._process.pid
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # pid (comm) state ppid, see proc(5)
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == master:
                    found.add(int(folder.name))
        return found

    @property
    def processes(self) -> set[int]:
        assert self._process is not None
        return {self._process.pid, *self.workers}

    def probe(self, *options: str) -> Result:
        return run_main("probe", "--config", str(self.config), *options)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Stop the service as systemd does, or kill all of it."""
        if self._process is None:
            return
        processes = self.processes
        with contextlib.suppress(ProcessLookupError):
            if sig is signal.SIGTERM:
                self._process.send_signal(sig)
            else:
                os.killpg(self._process.pid, sig)
        self._process.wait(PATIENCE)
        self._process = None
        # A killed worker that is not gone yet would still take connections, and reset them.
        wait_until(lambda: not any(map(_is_alive, processes)), f"{self.name} has ended")

    def terminate(self) -> None:
        """Tell the service to stop, and don't wait; ``stop`` does."""
        assert self._process is not None
        self._process.terminate()

    def pause(self) -> None:
        """Freeze all of the service; returns when every thread of it stands still."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        pids = [self._process.pid, *self.workers]
        tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/stat")]
        # One that keeps the store's turn while it stands still is killed by another server.
        wait_until(lambda: all(_is_in("TZX", task) for task in tasks), "the service stands still")

    def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def await_line(self, text: str, *, mark: int = 0) -> None:
        """Wait until its log says ``text``, after the first ``mark`` characters.

        Lines are written at the end of a turn of the event loop: perhaps after the answer.
        """
        wait_until(lambda: text in self.log[mark:], f"logged: {text}")


class Deployment:
    """Two servers, a coordinator and two clients, as the playbooks lay them out."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        """``store``: the URL of an empty store; by default an SQLite file in ``folder``."""
        self.folder = folder
        self.store_url = store or f"sqlite:///{folder}/messages.db"
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority()
        self.made: list[Service] = []
        """Every service ever made here; ``stop`` ends them all."""
        self.keyrings = folder / "keyrings"
        self.keyrings.mkdir()
        self.servers = [self._make_server(f"server{number}") for number in (1, 2)]
        self.coordinator = self.make_coordinator("coordinator1")
        self.add_client("client1")
        self.add_client("client2")
        migrated = run_main("migrate", "--config", str(self.servers[0].config))
        assert migrated.code == 0, migrated.err

    @property
    def services(self) -> list[Service]:
        return [*self.servers, self.coordinator]

    @property
    def url(self) -> str:
        return self.coordinator.url

    def start(self) -> None:
        """Start what does not run, and wait until every server is in use."""
        starting = [service for service in self.services if not service.is_running]
        for service in starting:
            service.start(wait=False)
        for service in starting:
            service.wait()

    def restart(self, *services: Service) -> None:
        """Stop and start services, all at once."""
        for service in services:
            service.terminate()
        for service in services:
            service.stop()
        self.start()

    def settle(self) -> None:
        """Start what is stopped, and wait until the coordinator uses both servers again."""
        for service in self.services:
            if service.is_running:
                service.resume()
        self.start()
        with self.client() as client:
            wait_until(
                lambda: (
                    {client.send("settle").served_by for _ in range(8)}
                    == {server.name for server in self.servers}
                ),
                "both servers are in use",
            )

    def stop(self) -> None:
        for service in self.made:
            service.stop(signal.SIGKILL)

    def issue(self, role: str, name: str, **changes: Any) -> Path:
        """A leaf of our CA for a role and a name."""
        leaf = Leaf([spiffe_id(role, name)], **changes)
        return self.authority.issue(self.folder / f"{role}-{name}", leaf)

    def add_client(self, name: str) -> Path:
        """Make a client's folder; returns its client.toml."""
        folder = self.issue("client", name, hosts=(), usages=CLIENT_ONLY)
        keys = generate_keyring()
        put_file(folder / "payload.keys", keys.encode())
        (self.keyrings / f"{name}.keys").write_text(keys)
        return self.write_client(folder, name)

    def operator_config(self, *urls: str) -> Path:
        """The operator's settings; ``urls`` of coordinators: by default ours."""
        folder = self.folder / "operator-operator1"
        if not folder.exists():
            self.issue("operator", "operator1", hosts=(), usages=CLIENT_ONLY)
        config = folder / "operator.toml"
        values: dict[str, object] = {
            "service": "operator",
            "name": "operator1",
            "trust_domain": TRUST_DOMAIN,
            "coordinators": list(urls) or [self.url],
        }
        write_toml(config, values, tls={"cert": "cert.pem", "key": "key.pem", "ca": "ca.pem"})
        self._add_servers(config)
        return config

    def write_client(
        self, folder: Path, name: str, *urls: str, file: str = "client.toml", **changes: object
    ) -> Path:
        """Write a client's settings into its folder; ``urls`` of coordinators: by default ours."""
        config = folder / file
        values: dict[str, object] = {
            "service": "client",
            "name": name,
            "trust_domain": TRUST_DOMAIN,
            "coordinators": list(urls) or [self.url],
            "payload_keys": "payload.keys",
            "deadline": 30.0,
            **changes,
        }
        write_toml(config, values, tls={"cert": "cert.pem", "key": "key.pem", "ca": "ca.pem"})
        return config

    def publish_crl(self, *revoked: Path, **changes: Any) -> None:
        """A new CRL, which revokes the leaves in these folders, for all services at once."""
        self.put_crl(self.authority.make_crl(*revoked, **changes))

    def put_crl(self, crl: bytes) -> None:
        """Put ``crl`` where the services have theirs; those that have none are told where it is."""
        for service in self.services:
            folder = service.config.parent
            put_file(folder / "crl.pem", crl)
            text = service.config.read_text()
            if "\ncrl = " not in text:
                service.config.write_text(text.replace("[tls]\n", '[tls]\ncrl = "crl.pem"\n'))

    def client_config(self, name: str) -> Path:
        return self.folder / f"client-{name}" / "client.toml"

    def client(self, name: str = "client1", **options: Any) -> Client:
        return Client.from_file(self.client_config(name), **options)

    def session(self, folder: Path) -> requests.Session:
        """A plain HTTP client with the leaf of ``folder``, as a user's own program would be."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(folder / "ca.pem")
        session.cert = (str(folder / "cert.pem"), str(folder / "key.pem"))
        return session

    def client_session(self, name: str = "client1") -> requests.Session:
        return self.session(self.client_config(name).parent)

    @contextlib.contextmanager
    def store(self) -> Iterator[SqlStore]:
        settings = load_settings(self.servers[0].config, ServerSettings)
        store = open_store(settings.store, read_only=True)
        try:
            yield store
        finally:
            store.close()

    def stored(self) -> int:
        with self.store() as store:
            return store.count()

    def stored_ids(self, client: str | None = None) -> list[str]:
        with self.store() as store:
            return [record.message_id.hex() for record in store.newest(client)]

    def _make_server(self, name: str) -> Service:
        folder = self.issue("server", name)
        port = free_port()
        write_toml(
            folder / "server.toml",
            {
                "service": "server",
                "name": name,
                "trust_domain": TRUST_DOMAIN,
                "bind": f"127.0.0.1:{port}",
                "store": self.store_url,
                "keyrings": str(self.keyrings),
                "log_payloads": True,
            },
            tls={key: str(folder / f"{key}.pem") for key in ("cert", "key", "ca")},
        )
        return self._keep(Service("server", folder / "server.toml", port))

    def make_coordinator(self, name: str, folder: Path | None = None, **changes: object) -> Service:
        """A coordinator for both servers; its leaf is made in ``folder``. Not started."""
        if folder is None:
            folder = self.folder / f"coordinator-{name}"
        self.authority.issue(folder, Leaf([spiffe_id("coordinator", name)]))
        port = free_port()
        config = folder / "coordinator.toml"
        write_toml(
            config,
            {
                "service": "coordinator",
                "name": name,
                "trust_domain": TRUST_DOMAIN,
                "bind": f"127.0.0.1:{port}",
                **changes,
            },
            tls={key: str(folder / f"{key}.pem") for key in ("cert", "key", "ca")},
        )
        self._add_servers(config)
        return self._keep(Service("coordinator", config, port))

    def _add_servers(self, config: Path) -> None:
        with config.open("a") as file:
            for server in self.servers:
                file.write(f'\n[[servers]]\nname = "{server.name}"\nurl = "{server.url}"\n')

    def _keep(self, service: Service) -> Service:
        self.made.append(service)
        return service


def run_sealrelay(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "sealrelay", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        **options,
    )


def put_file(path: Path, data: bytes) -> None:
    """Put a file in place in one step, as the playbooks do."""
    new = path.with_name(f"new-{path.name}")
    new.write_bytes(data)
    new.chmod(0o600)
    new.replace(path)


def write_toml(path: Path, values: dict[str, object], **tables: dict[str, str]) -> None:
    """Write plain values and tables; JSON's spelling of them is TOML's too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for table, entries in tables.items():
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(entries[key])}" for key in entries)]
    path.write_text("\n".join(lines) + "\n")
