"""Leaves and keys that are provided as files: the role `certificate` by itself, without a host."""

from __future__ import annotations

import datetime
import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.repo.conftest import run_playbook
from tests.support.node import find_secrets
from tests.support.pki import CLIENT_ONLY, Authority, Leaf, spiffe_id

_BESIDE = Path(sys.executable).parent


def _give(tmp_path: Path, source: str = "files") -> subprocess.CompletedProcess[str]:
    """Run the role for client1, whose folder is ``host``; with what lies in ``pki``."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "ca_source": source,
            "ca_dir": str(tmp_path / "pki"),
            "certificate_role": "client",
            "certificate_dirs": {"client1": str(tmp_path / "host")},
            "certificate_owner": pwd.getpwuid(os.getuid()).pw_name,
            "certificate_group": grp.getgrgid(os.getgid()).gr_name,
            "certificate_key_mode": "0600",
        },
        "tasks": [{"ansible.builtin.include_role": {"name": "certificate"}}],
    }
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    return run_playbook(
        tmp_path,
        *("-i", "localhost,", "-vvv", "--diff", playbook),
        ANSIBLE_VAULT_PASSWORD_FILE=str(tmp_path / "vault"),
    )


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Provide CA, leaf and key, this one encrypted; tells the key."""
    authority = Authority("Company CA")
    ends = datetime.timedelta(days=30)
    leaf = Leaf([spiffe_id("client", "client1")], hosts=(), usages=CLIENT_ONLY, ends=ends)
    made = authority.issue(tmp_path / "made", leaf)
    leaves = tmp_path / "pki" / "leaves"
    leaves.mkdir(parents=True)
    (tmp_path / "host").mkdir()
    (tmp_path / "pki" / "ca.pem").write_bytes(authority.pem)
    (made / "cert.pem").rename(leaves / "client.client1.pem")
    provided = (made / "key.pem").rename(leaves / "client.client1.key")
    text = provided.read_text()
    (tmp_path / "vault").write_text("only for this test")
    subprocess.run(
        [
            *(_BESIDE / "ansible-vault", "encrypt"),
            *("--vault-password-file", tmp_path / "vault", provided),
        ],
        check=True,
        capture_output=True,
    )
    return text


def test_a_leaf_comes_with_its_encrypted_key(tmp_path: Path, key: str) -> None:
    assert "BEGIN" not in (tmp_path / "pki/leaves/client.client1.key").read_text()
    done = _give(tmp_path)
    assert done.returncode == 0, done.stdout
    host = tmp_path / "host"
    assert sorted(path.name for path in host.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert (host / "key.pem").read_text().strip() == key.strip()
    assert (host / "key.pem").stat().st_mode & 0o7777 == 0o600
    assert not find_secrets(done.stdout + done.stderr, key.splitlines()[1:2])
    again = _give(tmp_path)
    assert "changed=0" in again.stdout, "nothing is left to do"


def test_a_key_that_cannot_be_read_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "pki/leaves/client.client1.key"
    path.write_text(key.replace("M", "N", 1)[:60])
    done = _give(tmp_path)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"{path} is no private key in PEM that can be read" in said
    assert list((tmp_path / "host").iterdir()) == []
    path.unlink()
    done = _give(tmp_path)
    assert "client.client1.pem has no key: neither" in " ".join(done.stdout.split())


def test_a_request_is_written_signed_and_read_back_in(tmp_path: Path) -> None:
    authority = Authority("Company CA")
    pki, host = tmp_path / "pki", tmp_path / "host"
    (pki / "leaves").mkdir(parents=True)
    (pki / "ca.pem").write_bytes(authority.pem)
    host.mkdir()
    (tmp_path / "vault").write_text("only for this test")
    done = _give(tmp_path, "requests")
    leaf = pki / "leaves" / "client.client1.pem"
    assert f"{leaf} is missing" in " ".join(done.stdout.split())
    assert [path.name for path in host.iterdir()] == ["key.pem"]
    request = (pki / "requests" / "client.client1.csr").read_bytes()
    leaf.write_bytes(authority.sign_request(request))
    (host / "key.pem").chmod(0o640)
    done = _give(tmp_path, "requests")
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in host.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert "changed=0" in _give(tmp_path, "requests").stdout, "nothing is left to do"
    assert (pki / "requests" / "client.client1.csr").read_bytes() == request
