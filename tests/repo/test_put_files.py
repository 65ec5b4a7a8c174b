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

import pytest

from tests.repo.conftest import REPOSITORY

_PROGRAM = REPOSITORY / "roles" / "certificate" / "files" / "put_files.py"


_ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def _run(*specs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, _PROGRAM],
        input=json.dumps([{"files": {}, "pretend": False, **spec} for spec in specs]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _put(folder: Path, **spec: Any) -> str:
    done = _run({"folders": [str(folder)], **_ME, **spec})
    assert done.returncode == 0, done.stderr
    return done.stdout


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_key_is_put_beside_its_leaf_for_its_owner_alone(tmp_path: Path) -> None:
    spec = {"files": {"cert.pem": "leaf", "key.pem": "key"}, "modes": {"key.pem": "0600"}}
    assert _put(tmp_path, **spec, pretend=True) == f"{tmp_path}\n"
    assert list(tmp_path.iterdir()) == []
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    modes = {path.name: _mode(path) for path in tmp_path.iterdir()}
    assert modes == {"cert.pem": 0o644, "key.pem": 0o600}
    assert (tmp_path / "key.pem").read_text() == "key"
    assert _put(tmp_path, **spec) == "", "nothing is left to do"
    (tmp_path / "key.pem").chmod(0o640)
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    assert _mode(tmp_path / "key.pem") == 0o600


def test_several_folders_are_done_at_once_and_those_that_change_are_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    specs = []
    for folder in (one, other):
        folder.mkdir()
        specs.append({"folders": [str(folder)], "files": {"cert.pem": folder.name}, **_ME})
    assert _run(*specs).stdout == f"{one}\n{other}\n"
    assert [(f / "cert.pem").read_text() for f in (one, other)] == ["one", "other"]
    (other / "cert.pem").write_text("edited")
    assert _run(*specs).stdout == f"{other}\n"
    assert _run().stdout == ""


def test_a_key_that_stays_keeps_its_text_and_gets_its_mode(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    spec = {"files": {"cert.pem": "leaf"}, "modes": {"key.pem": "0640"}}
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    assert not key.exists(), "it is looked after, not made"
    key.write_text("key")
    key.chmod(0o666)
    assert _put(tmp_path, **spec, pretend=True) == f"{tmp_path}\n"
    assert _mode(key) == 0o666
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    assert (key.read_text(), _mode(key)) == ("key", 0o640)
    assert _put(tmp_path, **spec) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_that_stays_gets_its_owner(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("key")
    nobody = pwd.getpwnam("nobody")
    owner = {"owner": "nobody", "group": grp.getgrgid(nobody.pw_gid).gr_name}
    spec = {"files": {"cert.pem": "leaf"}, "modes": {"key.pem": "0600"}, **owner}
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    assert _put(tmp_path, **spec) == ""
    for path in (key, tmp_path / "cert.pem"):
        assert (path.stat().st_uid, path.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert _put(tmp_path, **{**spec, **_ME}) == f"{tmp_path}\n"
    assert key.stat().st_uid == os.getuid()


def test_a_link_in_the_place_of_a_key_is_left_alone(tmp_path: Path) -> None:
    """It may be where a user keeps the key; whom the folder belongs to may have made it, too."""
    victim = tmp_path / "victim"
    victim.write_text("somebody's")
    victim.chmod(0o644)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "key.pem").symlink_to(victim)
    _put(folder, files={"cert.pem": "leaf"}, modes={"key.pem": "0600"})
    assert _mode(victim) == 0o644
    assert (folder / "key.pem").is_symlink()
    assert (folder / "cert.pem").read_text() == "leaf"


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        os.mkfifo(tmp_path / name)
    _put(tmp_path, files={"cert.pem": "leaf"}, modes={"key.pem": "0600"})
    assert (tmp_path / "cert.pem").read_text() == "leaf"


def test_a_new_key_comes_with_its_leaf(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("old")
    (tmp_path / "key.pem.new").write_text("new")
    _put(tmp_path, files={"cert.pem": "leaf"}, rename={"key.pem.new": "key.pem"})
    assert (tmp_path / "key.pem").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]


def test_a_new_key_has_its_mode_before_it_takes_its_place(tmp_path: Path) -> None:
    old, new = tmp_path / "key.pem", tmp_path / "key.pem.new"
    for path in (old, new):
        path.write_text(path.name)
        path.chmod(0o600)
    # Where the new one can't take its place, everything before that has happened.
    old.unlink()
    old.mkdir()
    spec = {"rename": {"key.pem.new": "key.pem"}, "modes": {"key.pem": "0640"}}
    assert _put(tmp_path, **spec, pretend=True) == f"{tmp_path}\n"
    assert _mode(new) == 0o600
    assert _run({"folders": [str(tmp_path)], **_ME, **spec}).returncode != 0
    assert (new.read_text(), _mode(new)) == ("key.pem.new", 0o640)
    old.rmdir()
    assert _put(tmp_path, **spec) == f"{tmp_path}\n"
    assert (old.read_text(), _mode(old)) == ("key.pem.new", 0o640)


def test_a_rehearsal_of_the_first_deployment_tells_what_would_be_put(tmp_path: Path) -> None:
    never = tmp_path / "never"
    spec = {"files": {"cert.pem": "leaf"}, "modes": {"key.pem": "0600"}}
    unknown = {"owner": "no-such-user", "group": "no-such-group"}
    assert _put(never, **spec, **unknown, pretend=True) == f"{never}\n"
    assert _put(tmp_path, **spec, **unknown, pretend=True) == f"{tmp_path}\n"
    assert list(tmp_path.iterdir()) == []
    # And when it is no rehearsal, it is an error.
    assert _put(never, **spec) == ""
    assert "no-such-user" in _run({"folders": [str(tmp_path)], **unknown, **spec}).stderr
    assert list(tmp_path.iterdir()) == []
