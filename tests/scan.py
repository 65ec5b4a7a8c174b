"""What ``bin/scan`` runs: two independent scanners against services that run on loopback.

Every finding is to be OK or INFO, or among those below, each with the reason why it is accepted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sealrelay.errors import SealrelayError
from tests.support.deployment import Deployment, Service
from tests.support.pki import Leaf, spiffe_id

ACCEPTED = {
    "cert_revocation": "HIGH: no CRL or OCSP address in the leaf. None is needed: every endpoint "
    "has the CRL as a file, and asks nobody whether a peer is revoked",
    "DNS_CAArecord": "LOW: no DNS record says which public CA may issue. Ours is no public CA, "
    "and nobody trusts any other",
    "HSTS": "LOW: no Strict-Transport-Security. It would speak for all ports of the host, and "
    "there is no plain HTTP here that a browser could be led to",
    "engine_problem": "WARN: of the scanner: its OpenSSL has no GOST ciphers to try",
}
"""Findings of testssl.sh that are neither OK nor INFO, and why they may be there."""

ACCEPTED_WITHOUT_LEAF = {
    "optimal_proto": "WARN: of the scanner: its OpenSSL is refused, as it should be",
    "service": "DEBUG: of the scanner: refused, it is not told that this is HTTP",
}
"""As well, where the scanner shows no leaf."""

_CHECKED = {"TLS1_3", "TLS1_2", "SSLv3", "cipherlist_NULL", "PFS", "heartbleed", "ROBOT"}
_CHECKED |= {"cert_chain_of_trust", "cert_trust", "cert_signatureAlgorithm", "sessionresumption_ID"}
"""Some of what testssl.sh looks at: if one is missing, it did not look."""
_CHECKED_WITH_LEAF = {"HTTP_status_code", "HSTS"}

_LEAF_LIVES = datetime.timedelta(days=90)
"""The most that the profile *modern* allows. The role's default is a year, for where nobody renews
leaves from cron; sslyze finds that then, and nothing else."""
_PATIENCE = 600.0
"""Seconds for one scan."""


@dataclass
class Scan:
    """What one scanner found of one service."""

    scanner: str
    service: Service
    has_leaf: bool
    """Whether the scanner shows a leaf of ours."""
    findings: list[str] = field(default_factory=list)
    """What is above the line."""
    accepted: list[str] = field(default_factory=list)
    looked_at: int = 0

    @property
    def row(self) -> str:
        leaf = "with leaf" if self.has_leaf else "no leaf"
        found = f"{len(self.findings)} findings" if self.findings else "clean"
        passed = f"; accepted: {', '.join(self.accepted)}" if self.accepted else ""
        return f"{self.scanner:10} {self.service.kind:12} {leaf:10} {found}{passed}"


def _leaf_of_peer(deployment: Deployment, service: Service) -> Path:
    if service is deployment.coordinator:
        return deployment.client_config("client1").parent
    return deployment.coordinator.config.parent


def scan_with_sslyze(program: str, folder: Path, scan: Scan, leaf: Path) -> None:
    """Compare a service with Mozilla's *modern* profile, which knows no severities."""
    command = [program, "--mozilla_config=modern", f"--certinfo_ca_file={leaf / 'ca.pem'}"]
    if scan.has_leaf:
        command += ["--cert", str(leaf / "cert.pem"), "--key", str(leaf / "key.pem")]
    command.append(f"localhost:{scan.service.port}")
    code, said = _run(command, folder)
    verdict = said.partition("COMPLIANCE AGAINST TLS CONFIGURATION")[2]
    scan.findings = re.findall(r"^ +\* (.+)$", verdict, re.MULTILINE)
    scan.looked_at = len(re.findall(r"^ \* ", said, re.MULTILINE))
    if not scan.findings and (code != 0 or "OK - Compliant" not in verdict):
        raise RuntimeError(f"sslyze ended with {code}:\n{said}")


def scan_with_testssl(folder: Path, scan: Scan, leaf: Path) -> None:
    """Look for what testssl.sh finds worse than INFO."""
    report = folder / "report.json"
    command = ["testssl", "--quiet", "--color=0", "--warnings=off", "--jsonfile", str(report)]
    # its clients' simulation would only tell which browsers are too old
    command += ["--protocols", "--std", "--pfs", "--server-preference", "--server-defaults"]
    command += ["--headers", "--vulnerable", "--add-ca", str(leaf / "ca.pem")]
    if scan.has_leaf:
        command += ["--openssl", str(_openssl_with_leaf(folder, leaf))]
    command.append(f"localhost:{scan.service.port}")
    _, said = _run(command, folder)
    found = json.loads(report.read_text()) if report.exists() else []
    wanted = _CHECKED | _CHECKED_WITH_LEAF if scan.has_leaf else _CHECKED
    missing = wanted - {finding["id"] for finding in found}
    if missing:
        raise RuntimeError(f"testssl.sh did not look at {missing}:\n{said}")
    scan.looked_at = len(found)
    accepted = ACCEPTED if scan.has_leaf else ACCEPTED | ACCEPTED_WITHOUT_LEAF
    for finding in found:
        if finding["severity"] in ("OK", "INFO"):
            continue
        if accepted.get(finding["id"], "").startswith(f"{finding['severity']}:"):
            scan.accepted.append(finding["id"])
        else:
            scan.findings.append("{severity} {id}: {finding}".format(**finding))


def _openssl_with_leaf(folder: Path, leaf: Path) -> Path:
    """An ``openssl`` whose s_client shows a leaf; this testssl.sh can't be given one."""
    wrapper = folder / "openssl"
    options = f"-cert {leaf}/cert.pem -key {leaf}/key.pem"
    wrapper.write_text(
        "#!/usr/bin/env bash\n"
        f'[[ ${{1:-}} != s_client ]] || set -- s_client {options} "${{@:2}}"\n'
        f'exec {shutil.which("openssl")} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def _run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """A scanner's exit code, and all that it prints. It is ended when it takes too long."""
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            # it ends with this process, too
            ["setpriv", "--pdeathsig", "TERM", *command],
            cwd=folder,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = -1
    text = output.read_text(errors="replace")
    if code < 0:
        raise RuntimeError(f"{command[0]} took more than {_PATIENCE:g} s, or was killed:\n{text}")
    return code, text


def deploy(folder: Path) -> Deployment:
    """Services with a CRL, and with leaves as they are to be where renew.yml runs from cron."""
    made = Deployment(folder)
    for service in made.services:
        leaf = Leaf([spiffe_id(service.kind, service.name)])
        leaf.ends = _LEAF_LIVES
        made.authority.issue(service.config.parent, leaf)
    made.publish_crl()
    return made


class Sender:
    """Sends messages all the time, to see what scans do to who belongs here."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.seconds: list[float] = []
        self.failures: list[str] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._send, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _send(self, over: threading.Event) -> None:
        with self._deployment.client() as client:
            while not over.wait(0.1):
                try:
                    self.seconds.append(client.send("sent during the scans").seconds)
                except SealrelayError as error:
                    self.failures.append(str(error))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bin/scan")
    parser.add_argument("--sslyze", required=True, type=Path, help="the program")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sealrelay-scan-") as name:
        folder = Path(name)
        deployment = deploy(folder / "deployment")
        try:
            deployment.start()
            sender = Sender(deployment)
            with sender.sending():
                scans = _scan_all(deployment, folder, str(options.sslyze.absolute()))
        finally:
            deployment.stop()
    for scan in scans:
        print(scan.row)  # noqa: T201
        for finding in scan.findings:
            print(f"    {finding}")  # noqa: T201
    for accepted in sorted({name for scan in scans for name in scan.accepted}):
        print(f"accepted {accepted}: {(ACCEPTED | ACCEPTED_WITHOUT_LEAF)[accepted]}")  # noqa: T201
    for failure in sender.failures:
        print(f"a message failed meanwhile: {failure}")  # noqa: T201
    print(  # noqa: T201
        f"{len(sender.seconds)} messages sent meanwhile, {len(sender.failures)} failed, "
        f"slowest {max(sender.seconds, default=0) * 1000:.0f} ms"
    )
    bad = sum(len(scan.findings) for scan in scans)
    looked = sum(scan.looked_at for scan in scans)
    seconds = time.monotonic() - began
    print(f"{len(scans)} scans in {seconds:.0f} s, {looked} looks, {bad} findings above INFO")  # noqa: T201
    return 1 if bad or sender.failures else 0


def _scan_all(deployment: Deployment, folder: Path, sslyze: str) -> list[Scan]:
    scans = [
        Scan(scanner, service, has_leaf)
        for scanner in ("sslyze", "testssl.sh")
        for service in (deployment.coordinator, deployment.servers[0])
        for has_leaf in (True, False)
    ]

    def work(number: int, scan: Scan) -> None:
        leaf = _leaf_of_peer(deployment, scan.service)
        own = folder / str(number)
        own.mkdir()
        if scan.scanner == "sslyze":
            scan_with_sslyze(sslyze, own, scan, leaf)
        else:
            scan_with_testssl(own, scan, leaf)

    # testssl.sh mostly waits, for answers that it is right not to get
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number, scan) for number, scan in enumerate(scans)]:
            done.result()
    return scans


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
