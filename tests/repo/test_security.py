"""docs/security.md claims nothing without a test, and hides nothing that is accepted."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.repo.conftest import REPOSITORY
from tests.scan import ACCEPTED, ACCEPTED_WITHOUT_LEAF

PAGE = (REPOSITORY / "docs" / "security.md").read_text()
_NAMED = re.compile(r"`([a-z]+/\w+\.py)::(\w+)`")
NAMED = sorted(set(_NAMED.findall(PAGE)))


@cache
def _tests_in(path: str) -> set[str]:
    tree = ast.parse((REPOSITORY / "tests" / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_named_test_exists(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in _tests_in(path)


def test_nothing_that_looks_like_a_test_is_passed_over() -> None:
    assert len(NAMED) > 50
    assert PAGE.count("::") == len(_NAMED.findall(PAGE))


def _rows(heading: str) -> list[list[str]]:
    """The rows below every table head that has this column, cell by cell."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        cells = ([cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines())
        head, _, *rows = cells
        if heading in head:
            found += rows
    return found


def test_every_cannot_names_a_test() -> None:
    rows = _rows("shown by")
    assert len(rows) > 30
    for _, shown_by in rows:
        assert _NAMED.search(shown_by), shown_by
    for row in _rows("cannot, and what shows it"):
        facts = [fact for fact in row[2].split(";") if fact]
        assert all(_NAMED.search(fact) for fact in facts), row


@pytest.mark.parametrize("finding", sorted(ACCEPTED | ACCEPTED_WITHOUT_LEAF))
def test_every_accepted_finding_of_a_scanner_is_told(finding: str) -> None:
    (row,) = (row for row in _rows("accepted because") if f"`{finding}`" in row[0])
    severity = (ACCEPTED | ACCEPTED_WITHOUT_LEAF)[finding].partition(":")[0]
    assert severity in row[1]
