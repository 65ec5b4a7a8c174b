"""The relays that are compared, each as its own documentation advises for this task.

The task: mutual TLS 1.3 on both sides, connections to the servers kept alive, the client's
certificate passed on in Client-Cert (RFC 9440), a failed server left out, and any message tried
again on the other server, since a repeat is harmless here. Where a relay lets its times be set,
they are the coordinator's: an attempt has 2 s, a health check comes every 0.5 s.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import ClassVar

from benchmarks.processes import Program
from benchmarks.testbed import SERVERS, Credentials, Measurement, Testbed
from sealrelay import __version__
from tests.support.deployment import free_port, write_toml
from tests.support.pki import TRUST_DOMAIN

_CONFIGS = Path(__file__).parent / "configs"
_PEM_LINES = 24
"""Lines of base64 in a client's certificate, at most."""


@dataclass(frozen=True)
class Site:
    """Where a relay runs: its folder, its leaf and key, and the ports of the two servers."""

    folder: Path
    credentials: Credentials
    server_ports: tuple[int, int]
    port: int


class Peer(ABC):
    """A relay that can be started."""

    name: ClassVar[str]

    @contextmanager
    def run(
        self, testbed: Testbed, measurement: Measurement, ports: tuple[int, int] | None = None
    ) -> Iterator[Running]:
        """The relay in front of the servers, which may not answer yet; it is ended afterwards.

        ``ports``: where it reaches the servers, if not directly.
        """
        folder = measurement.folder / self.name
        folder.mkdir()
        site = Site(folder, testbed.relay, ports or measurement.ports, free_port())
        program = Program(self._command(site), folder / "log")
        try:
            yield Running(program, site.port)
        finally:
            program.stop()

    @classmethod
    def is_available(cls) -> bool:
        return True

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """What is measured, as its own command tells it."""

    @abstractmethod
    def _command(self, site: Site) -> list[str]:
        """Write its settings; returns what to run."""


@dataclass(frozen=True)
class Running:
    """A relay that was started; it may not answer yet."""

    program: Program
    port: int


class Sealrelay(Peer):
    """This project's coordinator, with the settings that it comes with."""

    name = "sealrelay"

    @classmethod
    def version(cls) -> str:
        return __version__

    def _command(self, site: Site) -> list[str]:
        config = site.folder / "coordinator.toml"
        write_toml(
            config,
            {
                "service": "coordinator",
                "name": "relay",
                "trust_domain": TRUST_DOMAIN,
                "bind": f"127.0.0.1:{site.port}",
            },
            tls={
                "cert": str(site.credentials.cert),
                "key": str(site.credentials.key),
                "ca": str(site.credentials.ca),
            },
        )
        with config.open("a") as file:
            for name, port in zip(SERVERS, site.server_ports, strict=True):
                file.write(f'\n[[servers]]\nname = "{name}"\nurl = "https://127.0.0.1:{port}"\n')
        return [sys.executable, "-m", "sealrelay", "coordinator", "--config", str(config)]


class _Proxy(Peer):
    """A program of the distribution's, with a settings file of ours."""

    command: ClassVar[str]
    version_option: ClassVar[str]
    config: ClassVar[str]

    @classmethod
    def is_available(cls) -> bool:
        return shutil.which(cls.command) is not None

    @classmethod
    def version(cls) -> str:
        told = subprocess.run(
            [cls.command, cls.version_option], capture_output=True, text=True, check=True
        )
        found = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
        return found[0] if found else "unknown"

    def _write_config(self, site: Site) -> Path:
        text = Template((_CONFIGS / self.config).read_text()).substitute(
            folder=site.folder,
            port=site.port,
            server1_port=site.server_ports[0],
            server2_port=site.server_ports[1],
            cert=site.credentials.cert,
            key=site.credentials.key,
            both=site.credentials.both,
            ca=site.credentials.ca,
            **self._more(),
        )
        path = site.folder / self.config
        path.write_text(text)
        return path

    def _more(self) -> dict[str, str]:
        """Further values for the settings file."""
        return {}


class Haproxy(_Proxy):
    name = command = "haproxy"
    version_option = "-v"
    config = "haproxy.cfg"

    def _command(self, site: Site) -> list[str]:
        return [self.command, "-db", "-f", str(self._write_config(site))]


class Nginx(_Proxy):
    name = command = "nginx"
    version_option = "-v"
    config = "nginx.conf"

    def _command(self, site: Site) -> list[str]:
        return [self.command, "-p", str(site.folder), "-c", str(self._write_config(site))]

    def _more(self) -> dict[str, str]:
        lines = range(_PEM_LINES)
        return {
            "pem_lines": "".join(rf"(?:(?<pem{line}>[^\n-]+)\n)?" for line in lines),
            "pem_joined": "".join(f"$pem{line}" for line in lines),
        }


class Caddy(_Proxy):
    name = command = "caddy"
    version_option = "version"
    config = "Caddyfile"

    def _command(self, site: Site) -> list[str]:
        config = str(self._write_config(site))
        home = f"HOME={site.folder}"  # it keeps a folder there
        return ["env", home, self.command, "run", "--adapter", "caddyfile", "--config", config]


class Naive(Peer):
    """What one writes first: Flask's own server, and ``requests.post`` for each message."""

    name = "naive"

    @classmethod
    def version(cls) -> str:
        from importlib.metadata import version

        return ", ".join(f"{name} {version(name)}" for name in ("flask", "werkzeug", "requests"))

    def _command(self, site: Site) -> list[str]:
        settings = {
            "port": site.port,
            "servers": [f"https://127.0.0.1:{port}" for port in site.server_ports],
            "cert": str(site.credentials.cert),
            "key": str(site.credentials.key),
            "ca": str(site.credentials.ca),
        }
        config = site.folder / "naive.json"
        config.write_text(json.dumps(settings))
        return [sys.executable, "-m", "benchmarks.naive", str(config)]


PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (Sealrelay(), Haproxy(), Nginx(), Caddy(), Naive())
}
