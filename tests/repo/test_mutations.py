"""``tests.mutations`` takes out every check of who is let in, and its tests are there."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations.checks import MUTATIONS, Mutation
from tests.repo.conftest import REPOSITORY

PACKAGE = REPOSITORY / "app" / "src" / "sealrelay"
_REFUSALS = {"IdentityRefused", "LeafRefused", "CaRefused", "CrlRefused"}
_MAY_NOT = 403


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.check)
def test_check_can_be_taken_out(mutation: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / mutation.file
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(PACKAGE / mutation.file, copy)
    mutation.apply(tmp_path)
    compile(copy.read_text(), copy, "exec")
    assert copy.read_text() != (PACKAGE / mutation.file).read_text()


def test_no_two_checks_have_one_name() -> None:
    assert len({mutation.check for mutation in MUTATIONS}) == len(MUTATIONS)


def test_tests_that_are_to_fail_exist() -> None:
    """As pytest finds them, parameters included."""
    names = sorted({mutation.test for mutation in MUTATIONS})
    command = [sys.executable, "-m", "pytest", "-qq", "-p", "no:cacheprovider", "--collect-only"]
    run = subprocess.run(
        [*command, *names], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr + run.stdout[-2000:]


def _refuses(node: ast.AST) -> bool:
    if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
        return False
    named = ast.unparse(node.exc.func)
    first = node.exc.args[0]
    return named in _REFUSALS or (
        named == "Problem" and isinstance(first, ast.Constant) and first.value == _MAY_NOT
    )


def _find_checks(source: str) -> Iterator[range]:
    """The lines of each condition on which somebody is refused."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and any(map(_refuses, node.body)):
            yield range(node.lineno, node.body[0].lineno)


def test_every_check_is_taken_out() -> None:
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        taken_out: set[int] = set()
        for mutation in MUTATIONS:
            if PACKAGE / mutation.file == path:
                first = source[: source.index(mutation.old)].count("\n") + 1
                taken_out.update(range(first, first + mutation.old.rstrip("\n").count("\n") + 1))
        for lines in _find_checks(source):
            found += 1
            assert taken_out.intersection(lines), f"{path.relative_to(PACKAGE)}: {lines.start}"
    assert found > 20
