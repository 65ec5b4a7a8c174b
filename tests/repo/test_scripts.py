"""The commands in bin/ help, refuse what they don't know, and can be run from a fresh clone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.repo.conftest import REPOSITORY

SCRIPTS = [path for path in sorted((REPOSITORY / "bin").iterdir()) if path.suffix != ".sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_helps(script: Path) -> None:
    assert os.access(script, os.X_OK)
    run = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stdout.startswith(f"Usage: bin/{script.name}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_refuses_what_it_does_not_know(script: Path) -> None:
    run = subprocess.run([script, "--no-such"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "--no-such" in run.stderr
    assert "--help" in run.stderr


def need_space(megabytes: int, path: Path) -> subprocess.CompletedProcess[str]:
    command = f". bin/lib.sh; need_space {megabytes} {path}; echo goes on"
    return subprocess.run(
        ["bash", "-ec", command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path) -> None:
    """Also of a folder that is not there yet."""
    full = need_space(10**9, tmp_path / "a" / "b")
    assert full.returncode == 1
    assert f"MiB are free for {tmp_path}/a/b, and it takes up to 1000000000 MiB" in full.stderr
    assert need_space(1, tmp_path / "a" / "b").stdout == "goes on\n"


def test_ci_runs_all_tests_and_nothing_else() -> None:
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1].endswith('/../bin/test"')
