"""The commands in bin/ help, refuse what they don't know, and can be run from a fresh clone."""

from __future__ import annotations

import os
import subprocess
import sys
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


def with_lib(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command after what all scripts begin with."""
    return subprocess.run(
        ["bash", "-ec", f". bin/lib.sh; {command}"],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def need_space(megabytes: int, path: Path) -> subprocess.CompletedProcess[str]:
    return with_lib(f"need_space {megabytes} {path}; echo goes on")


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path) -> None:
    """Also of a folder that is not there yet."""
    full = need_space(10**9, tmp_path / "a" / "b")
    assert full.returncode == 1
    assert f"MiB are free for {tmp_path}/a/b, and it takes up to 1000000000 MiB" in full.stderr
    assert need_space(1, tmp_path / "a" / "b").stdout == "goes on\n"


def test_compiled_modules_are_kept_also_where_an_image_says_not_to() -> None:
    asked = with_lib(
        f"{sys.executable} -c 'import sys; print(sys.dont_write_bytecode)'",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert asked.stdout == "False\n"


def test_ci_runs_all_tests_and_nothing_else() -> None:
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1].endswith('/../bin/test"')
