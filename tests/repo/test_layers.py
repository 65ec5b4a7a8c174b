"""Imports point downwards: a module imports only from layers below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.conftest import REPOSITORY

PACKAGE = REPOSITORY / "app" / "src" / "sealrelay"

# From the ground up; what stands on one line does not import each other.
LAYERS = [
    {"", "errors", "text", "words", "figures", "processes", "quick", "journal"},
    {"identity", "seal"},
    {"trust", "door"},
    {"tls"},
    {"config"},
    {"store", "wire", "history", "reload", "keyrings"},
    {"metrics", "replies"},
    {"credentials", "probe"},
    {"web"},
    {"dispatch"},
    {"page"},
    {"server", "coordinator"},
    {"worker", "client_files"},
    {"serving", "client", "status", "verify", "reseal"},
    {"load"},
    {"cli"},
    {"__main__"},
]


def part_of(module: str) -> str:
    """``sealrelay.store.sql`` belongs to ``store``."""
    return [*module.split("."), ""][1]


def layer_of(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            yield node.module or ""
            if node.module == "sealrelay":
                yield from (f"sealrelay.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_imports_point_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    own = part_of(module.removesuffix(".__init__"))
    for imported in imports(path):
        if imported.split(".")[0] != "sealrelay" or part_of(imported).startswith("__version"):
            continue
        part = part_of(imported)
        assert part == own or layer_of(part) < layer_of(own), f"{own} imports {part}"


def test_decisions_do_no_input_or_output() -> None:
    allowed = {"__future__", "collections", "collections.abc", "dataclasses", "enum", "math"}
    assert set(imports(PACKAGE / "dispatch" / "decisions.py")) <= allowed


def test_coordinator_never_touches_what_opens_a_token() -> None:
    names = {
        node.id if isinstance(node, ast.Name) else node.attr
        for source in [PACKAGE / "coordinator.py", *(PACKAGE / "dispatch").glob("*.py")]
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    assert not names & {"Keyring", "load_keyring", "load_keyrings", "Fernet", "MultiFernet"}
