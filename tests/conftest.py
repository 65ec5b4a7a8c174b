"""What all tests share: tiers, one running deployment, the services' logs beside a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.deployment import Deployment, Service
from tests.support.postgres import Postgres, make_postgres

# Machines are slow at times, and that is not what these tests are about.
settings.register_profile(
    "sealrelay", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("sealrelay")

# Some images set this one, and each of hundreds of services would compile all that it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_LOG_LINES = 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SEALRELAY_TIER") == "long":
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="bin/test --long runs it"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that every test leaves running as it was; each makes its own schema."""
    with make_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store without schema, of each kind in its turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/messages.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_schema()


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running deployment for tests that leave every service running as it was."""
    shared = Deployment(tmp_path_factory.mktemp("shared") / "deployment")
    shared.start()
    yield shared
    shared.stop()


class Deployments:
    """Makes deployments, not started, that a test may treat as it likes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[Deployment] = []

    def make(self) -> Deployment:
        self.made.append(Deployment(self._folder / f"deployment{len(self.made)}"))
        return self.made[-1]


@pytest.fixture
def deployments(tmp_path: Path) -> Iterator[Deployments]:
    made = Deployments(tmp_path)
    yield made
    for deployment in made.made:
        deployment.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for service in _services_of(item):
            tail = "\n".join(service.log.splitlines()[-_LOG_LINES:])
            report.sections.append((f"log of {service.kind} {service.name}", tail))
    return report


def _services_of(item: pytest.Item) -> Iterator[Service]:
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Deployment):
            yield from value.made
        elif isinstance(value, Deployments):
            for deployment in value.made:
                yield from deployment.made
