"""The documentation mentions all there is to set, and nothing that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

import sealrelay.errors
from sealrelay.config import (
    ClientSettings,
    CoordinatorSettings,
    OperatorSettings,
    ServerAddress,
    ServerSettings,
)
from sealrelay.errors import SealrelayError
from sealrelay.tls import TlsFiles
from tests.repo.conftest import REPOSITORY, ROLES, tracked_files

README = (REPOSITORY / "README.md").read_text()
PROTOCOL = (REPOSITORY / "docs" / "protocol.md").read_text()
PAGES = tracked_files("*.md")


def test_page_of_variables_fits_the_roles() -> None:
    run = subprocess.run([REPOSITORY / "bin" / "docs", "--check"], check=False)
    assert run.returncode == 0, "docs/variables.md is older than the roles: run bin/docs"


@pytest.mark.parametrize(
    "kind", [ServerSettings, CoordinatorSettings, ClientSettings, OperatorSettings]
)
def test_every_setting_is_documented(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        if field.name == "tls":
            names = [f"tls.{part.name}" for part in msgspec.structs.fields(TlsFiles)]
        elif field.name == "servers":
            names = [f"servers.{part.name}" for part in msgspec.structs.fields(ServerAddress)]
        else:
            names = [field.name]
        for name in names:
            assert f"`{name}`" in PROTOCOL, name


def test_every_exit_code_is_documented() -> None:
    errors = [
        thing
        for thing in vars(sealrelay.errors).values()
        if isinstance(thing, type) and issubclass(thing, SealrelayError)
    ]
    for error in errors:
        assert f"\n| {error.exit_code} |" in PROTOCOL, error


def test_every_problem_is_documented() -> None:
    sources = [
        (REPOSITORY / "app/src/sealrelay" / f"{name}.py").read_text()
        for name in ("web", "server", "coordinator")
    ]
    names = set(
        re.findall(
            r'(?:Problem\(\s*\d+, |problem=)"([a-z-]+)"',
            "".join(sources),
        )
    )
    assert {"token-refused", "too-large", "no-healthy-server"} <= names
    for name in names - {"unexpected"}:
        assert f"`{name}`" in PROTOCOL, name


def test_readme_shows_the_project_tree_as_it_is() -> None:
    for role in ROLES:
        assert re.search(rf"\b{role}\b", README), f"role {role}"
    for path in sorted((REPOSITORY / "playbooks").glob("*.yml")) + sorted(
        (REPOSITORY / "bin").iterdir()
    ):
        if path.suffix != ".sh":
            assert path.name in README, path.name
    for folder in ("inventory", "playbooks", "roles", "app", "molecule", "tests", "docs", "bin"):
        assert f"{folder}/" in README, folder


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
