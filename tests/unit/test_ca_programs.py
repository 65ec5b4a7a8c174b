"""The programs that the roles `ca` and `certificate` bring along, interrupted anywhere."""

from __future__ import annotations

import getpass
import grp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import REPOSITORY

_SWITCH = REPOSITORY / "roles" / "ca" / "files" / "switch_ca.py"
_PUT = REPOSITORY / "roles" / "certificate" / "files" / "put_files.py"
_FILES = ("ca.key", "ca.pem", "crl.pem")


class Killed(Exception):
    """The program was killed here."""


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A CA that signs, and the next one beside it."""
    for folder, owner in ((tmp_path, "old"), (tmp_path / "next", "new")):
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            (folder / name).write_text(f"{owner} {name}")
    return tmp_path


def switch(pki: Path) -> str:
    command = [sys.executable, str(_SWITCH), str(pki)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def switch_until_killed(pki: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do that many changes of the file system, and no more; whether that was all of them."""
    left = steps

    def limit(change: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return change(*arguments, **options)

        return limited

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "replace", "rmdir"):
            patched.setattr(Path, name, limit(getattr(Path, name)))
        patched.setattr(shutil, "copy2", limit(shutil.copy2))
        patched.setattr(sys, "argv", ["switch_ca.py", str(pki)])
        try:
            exec(compile(_SWITCH.read_text(), _SWITCH, "exec"), {})  # noqa: S102 - our own program
        except Killed:
            return False
    return True


def assert_switched(pki: Path) -> None:
    assert [(pki / name).read_text() for name in _FILES] == [f"new {name}" for name in _FILES]
    previous = pki / "previous"
    assert [(previous / name).read_text() for name in _FILES] == [f"old {name}" for name in _FILES]
    assert sorted(path.name for path in pki.iterdir() if path.is_dir()) == ["previous"]


def test_switch_is_done_once(pki: Path) -> None:
    assert (switch(pki), switch(pki)) == ("switched", "unchanged")
    assert_switched(pki)


def test_switch_that_was_killed_anywhere_is_finished_by_the_next(
    pki: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in range(20):
        copy = shutil.copytree(pki, tmp_path_factory.mktemp("pki") / "pki")
        finished = switch_until_killed(copy, steps, monkeypatch)
        switch(copy)
        assert_switched(copy)
        if finished:
            assert steps > len(_FILES) * 2
            return
    pytest.fail("it never ends")


def put(folder: Path, **spec: Any) -> list[str]:
    owner = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}
    done = subprocess.run(
        [sys.executable, _PUT],
        input=json.dumps([{"folders": [str(folder)], "pretend": False, **owner, **spec}]),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_files_and_the_key_beside_them_are_put_into_place(tmp_path: Path) -> None:
    (tmp_path / "key.pem.new").write_text("new key")
    (tmp_path / "key.pem").write_text("old key")
    files = {"cert.pem": "a certificate", "ca.pem": "a CA"}
    rename = {"key.pem.new": "key.pem"}
    assert put(tmp_path, files=files, rename=rename, pretend=True) == [str(tmp_path)]
    assert (tmp_path / "key.pem").read_text() == "old key"
    assert not (tmp_path / "cert.pem").exists()
    (tmp_path / "cert.pem.new").write_text("half of")  # a run was killed
    assert put(tmp_path, files=files, rename=rename) == [str(tmp_path)]
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"key.pem": "new key", **files}
    assert put(tmp_path, files=files, rename=rename) == []
    (tmp_path / "cert.pem").chmod(0o600)
    assert put(tmp_path, files=files) == [str(tmp_path)]
    assert (tmp_path / "cert.pem").stat().st_mode & 0o777 == 0o644


def test_folders_without_the_file_that_counts_are_left_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "ca.pem").write_text("old")
    spec = {"folders": [f"{tmp_path}/*"], "having": "ca.pem", "files": {"ca.pem": "new"}}
    assert put(tmp_path, **spec) == [str(one)]
    assert (one / "ca.pem").read_text() == "new"
    assert list(other.iterdir()) == []
