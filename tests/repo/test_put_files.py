"""Certificates, CRLs and keys arrive on a host at once, each with its mode."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.repo.conftest import REPOSITORY

_PROGRAM = REPOSITORY / "roles" / "certificate" / "files" / "put_files.py"


def _put(folder: Path, **spec: Any) -> str:
    ids = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
    asked: dict[str, Any] = {"folders": [str(folder)], "pretend": False, **ids, **spec}
    return subprocess.run(
        [sys.executable, _PROGRAM],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_key_is_put_beside_its_leaf_for_its_owner_alone(tmp_path: Path) -> None:
    spec = {"files": {"cert.pem": "leaf", "key.pem": "key"}, "modes": {"key.pem": "0600"}}
    assert _put(tmp_path, **spec, pretend=True) == f"{tmp_path}\n"
    assert list(tmp_path.iterdir()) == []
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    modes = {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()}
    assert modes == {"cert.pem": 0o644, "key.pem": 0o600}
    assert (tmp_path / "key.pem").read_text() == "key"
    assert _put(tmp_path, **spec) == "", "nothing is left to do"
    (tmp_path / "key.pem").chmod(0o640)
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    assert (tmp_path / "key.pem").stat().st_mode & 0o7777 == 0o600


def test_a_new_key_comes_with_its_leaf(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("old")
    (tmp_path / "key.pem.new").write_text("new")
    _put(tmp_path, files={"cert.pem": "leaf"}, rename={"key.pem.new": "key.pem"})
    assert (tmp_path / "key.pem").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]
