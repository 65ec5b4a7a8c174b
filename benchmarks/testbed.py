"""What is the same for every relay: certificates, clients, and two committing servers."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from benchmarks.processes import Program
from benchmarks.spec import ClientFiles
from sealrelay.seal import generate_keyring
from tests.support.command import run_main
from tests.support.deployment import Service, free_port, write_toml
from tests.support.pki import CLIENT_ONLY, TRUST_DOMAIN, Authority, Leaf, spiffe_id

_VALID = timedelta(hours=12)
SERVERS = ("server1", "server2")
CLIENTS = ("client1", "client2")


@dataclass(frozen=True)
class Credentials:
    """A folder with cert.pem, key.pem, ca.pem, and both.pem: the certificate and its key."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def both(self) -> Path:
        return self.folder / "both.pem"


class Testbed:
    """Certificates and payload keys, made once; servers with an empty store for each measurement.

    ``folder`` must be on a real disk: a commit is only worth something when it is synced to one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = Authority("Benchmark CA")
        self._keyrings = folder / "keyrings"
        self._keyrings.mkdir(parents=True)
        self.clients = [self._make_client(name) for name in CLIENTS]
        self.relay = self._issue("coordinator", "relay")
        self._credentials = {name: self._issue("server", name) for name in SERVERS}
        self._measurements = 0

    @contextmanager
    def measurement(self) -> Iterator[Measurement]:
        """Two servers that answer, with an empty store; both are gone afterwards."""
        self._measurements += 1
        folder = self.folder / f"measurement{self._measurements}"
        folder.mkdir()
        services = [self._make_server(folder, name) for name in SERVERS]
        try:
            migrated = run_main("migrate", "--config", str(services[0].config))
            assert migrated.code == 0, migrated.err
            for service in services:
                service.start(wait=False)
            for service in services:
                service.wait()
            yield Measurement(folder, services)
        finally:
            for service in services:
                service.stop(signal.SIGKILL)
            shutil.rmtree(folder)

    def _make_server(self, folder: Path, name: str) -> Service:
        own = folder / f"server-{name}"
        own.mkdir()
        credentials = self._credentials[name]
        port = free_port()
        config = own / "server.toml"
        write_toml(
            config,
            {
                "service": "server",
                "name": name,
                "trust_domain": TRUST_DOMAIN,
                "bind": f"127.0.0.1:{port}",
                "store": f"sqlite:///{folder}/messages.db",
                "keyrings": str(self._keyrings),
            },
            tls={
                "cert": str(credentials.cert),
                "key": str(credentials.key),
                "ca": str(credentials.ca),
            },
        )
        return Service("server", config, port)

    def _make_client(self, name: str) -> ClientFiles:
        leaf = Leaf([spiffe_id("client", name)], hosts=(), usages=CLIENT_ONLY, ends=_VALID)
        folder = self._authority.issue(self.folder / name, leaf)
        keys = generate_keyring()
        (self._keyrings / f"{name}.keys").write_text(keys)
        return ClientFiles(str(folder), keys)

    def _issue(self, role: str, name: str) -> Credentials:
        leaf = Leaf([spiffe_id(role, name)], ends=_VALID)
        made = Credentials(self._authority.issue(self.folder / f"{role}-{name}", leaf))
        made.both.touch(mode=0o600)
        made.both.write_bytes(made.cert.read_bytes() + made.key.read_bytes())
        return made


@dataclass
class Measurement:
    """Servers that run, for one measurement."""

    folder: Path
    servers: list[Service]
    delay: Program | None = None
    """The delaying proxy in front of the first server, where there is one."""

    @property
    def ports(self) -> tuple[int, int]:
        """The servers' ports."""
        first, second = (server.port for server in self.servers)
        return first, second

    def stored(self) -> dict[str, int]:
        """How many rows the store has for each message id (hexadecimal)."""
        # Not through the application's own store: it is what is judged.
        connection = sqlite3.connect(f"file:{self.folder}/messages.db?mode=ro", uri=True)
        try:
            query = "SELECT lower(hex(id)), count(*) FROM messages GROUP BY id"
            return dict(connection.execute(query).fetchall())
        finally:
            connection.close()
