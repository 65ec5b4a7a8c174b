"""The commands in bin/ help, refuse what they don't know, and can be run from a fresh clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.conftest import REPOSITORY

DEVELOPMENT = (REPOSITORY / "docs" / "development.md").read_text()
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


def run_tests(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "bin" / "test", *arguments], capture_output=True, text=True, check=False
    )


def listed() -> dict[str, tuple[str, str]]:
    """Step → its tier, and what it does, as ``bin/test --list`` tells."""
    run = run_tests("--list")
    assert (run.returncode, run.stderr) == (0, "")
    heading, *lines = run.stdout.splitlines()
    assert heading.split() == ["STEP", "TIER", "WHAT", "IT", "DOES"]
    found = {name: (tier, what) for name, tier, what in (line.split(None, 2) for line in lines)}
    assert len(found) == len(lines), "no two steps have one name"
    return found


def test_steps_are_listed_and_described() -> None:
    steps = listed()
    assert {tier for tier, _ in steps.values()} == {"quick", "default", "long"}
    for name, (_, what) in steps.items():
        assert len(what.split()) > 3, name


def test_every_step_that_is_listed_can_be_performed_and_no_other() -> None:
    source = (REPOSITORY / "bin" / "test").read_text()
    body = re.search(r"^perform\(\) .*?^}", source, re.M | re.S)
    assert body
    patterns = re.findall(r"^    ([a-z][a-z0-9.*-]+)\)", body[0], re.M)
    for name in listed():
        assert any(Path(name).match(pattern) for pattern in patterns), name
    for pattern in patterns:
        assert any(Path(name).match(pattern) for name in listed()), pattern


def test_unknown_step_is_told_with_its_nearest() -> None:
    run = run_tests("lint-pyhton")
    assert (run.returncode, run.stdout) == (2, "")
    assert "there is no step 'lint-pyhton' (is it lint-python?); bin/test --list" in run.stderr
    # Also after one that there is, and before anything is done.
    assert run_tests("types", "no such step").returncode == 2


@pytest.mark.parametrize("arguments", [("--quick", "types"), ("--quick", "--long")])
def test_tiers_that_exclude_each_other_are_refused(arguments: tuple[str, ...]) -> None:
    assert run_tests(*arguments).returncode == 2


def reasons() -> dict[str, tuple[str, str, str]]:
    """What only the long tier runs → why, the command, the date of its last run."""
    table = re.search(r"^\| only in the long tier \|.*\n\|[-|]+\n((?:\|.*\n)+)", DEVELOPMENT, re.M)
    assert table
    found = {}
    for line in table[1].splitlines():
        name, why, command, date = (cell.strip() for cell in line.strip("|").split("|"))
        for each in re.findall(r"`([^`]+)`", name):
            found[each] = (why, command, date)
    return found


def only_in_the_long_tier() -> list[str]:
    """Its steps, and the files with tests that are marked ``long`` or ask for the tier."""
    steps = [name for name, (tier, _) in listed().items() if tier == "long"]
    mark = re.compile(r"pytest\.mark\.long\b|SEALRELAY_TIER")
    tests = [
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("integration", "lab", "unit")
        for path in sorted((REPOSITORY / "tests" / folder).glob("*.py"))
        if mark.search(path.read_text())
    ]
    assert tests
    return steps + tests


def test_what_only_the_long_tier_runs_is_told_with_its_reason_and_last_run() -> None:
    told = reasons()
    assert sorted(told) == sorted(only_in_the_long_tier())
    for name, (why, command, date) in told.items():
        assert len(why.split()) > 5, name
        assert command.startswith("`bin/test "), name
        assert re.fullmatch(r"not yet|\d{4}-\d\d-\d\d", date), name


@pytest.mark.parametrize("name", sorted(listed()))
def test_step_is_on_the_page_for_developers(name: str) -> None:
    assert f"`{name}`" in DEVELOPMENT


@pytest.mark.parametrize("tier", ["default", "long"])
def test_long_tests_are_skipped_unless_they_are_asked_for(tier: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.long\ndef test_long() -> None: pass\n"
        "def test() -> None: pass\n"
    )
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "pyproject.toml"),
            *("-p", "tests.conftest", str(tmp_path)),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"SEALRELAY_TIER": tier},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert ("2 passed" in run.stdout) == (tier == "long")
    assert ("bin/test --long runs it" in run.stdout) == (tier != "long")
