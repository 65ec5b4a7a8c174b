"""No secret is in the repository, and none could slip in: tests and playbooks make their own."""

from __future__ import annotations

import re
import subprocess

from cryptography.fernet import Fernet

from tests.repo.conftest import REPOSITORY, tracked_files
from tests.support.secret_paths import FERNET_KEY

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END")


def findings(text: str) -> list[str]:
    return _PRIVATE_KEY.findall(text) + FERNET_KEY.findall(text)


def test_no_file_of_the_repository_holds_a_key() -> None:
    for path in tracked_files():
        text = path.read_text(errors="replace")
        assert not findings(text), f"{path.relative_to(REPOSITORY)} holds a key"


def test_the_search_finds_a_key_where_there_is_one() -> None:
    assert findings(f"key = {Fernet.generate_key().decode()}\n")


def test_git_ignores_where_playbooks_put_secrets() -> None:
    for path in ("inventory/local/pki/ca.key", "inventory/lab/pki/passphrase"):
        run = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPOSITORY, check=False)
        assert run.returncode == 0, path
