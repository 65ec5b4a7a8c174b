"""The schema: made by numbered migrations, fit for the releases before and after this one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from msgspec.structs import astuple
from sqlalchemy import Column, MetaData, String, Table, text

import sealrelay.store.migrate
from sealrelay.store import Record, SchemaOutdated, SqlStore, open_store
from sealrelay.store.schema import REVISION, REVISION_TABLE, metadata
from tests.repo.conftest import REPOSITORY
from tests.unit.test_store import make_record, url_of

MIGRATIONS = Path(sealrelay.store.migrate.__file__).parent / "migrations"

# What the release before migrations executed on SQLite, word for word. It may go on doing so beside
# a newer one while hosts are updated one after the other.
FIRST_SCHEMA = """
CREATE TABLE messages (
    id BLOB NOT NULL,
    client VARCHAR(63) NOT NULL,
    token TEXT NOT NULL,
    sealed_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    server VARCHAR(63) NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX messages_received_at ON messages (received_at);
"""
FIRST_INSERT = (
    "INSERT INTO messages (id, client, token, sealed_at, received_at, server) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


def row_of(record: Record) -> tuple[object, ...]:
    return astuple(record)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


@pytest.fixture
def store(store_url: str) -> Iterator[SqlStore]:
    """One without tables yet."""
    opened = open_store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(path: Path) -> Iterator[SqlStore]:
    opened = open_store(url_of(path))
    yield opened
    opened.close()


def test_migrations_are_numbered_from_one_and_end_with_the_revision_of_this_release() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    assert [script.revision for script in scripts] == [
        f"{number:04}" for number in range(1, len(scripts) + 1)
    ]
    assert scripts[-1].revision == REVISION
    for script in scripts:
        assert Path(script.path).name.startswith(f"{script.revision}_")


def test_migrations_and_tables_say_the_same(store: SqlStore) -> None:
    store.migrate()
    with store._transaction() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": REVISION_TABLE,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_migrating_again_changes_nothing(store: SqlStore) -> None:
    assert store.revision() is None
    assert store.migrate() == [f"{number:04}" for number in range(1, int(REVISION) + 1)]
    store.add([make_record(1)])
    assert store.migrate() == []
    assert (store.revision(), store.count()) == (REVISION, 1)


def test_migration_waits_for_a_server_that_is_slow(sqlite: SqlStore, path: Path) -> None:
    """Longer than a server would wait: 1.5 s."""
    sqlite.migrate()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(3, other.execute, ["ROLLBACK"])
    timer.start()
    assert sqlite.migrate() == []
    timer.join()
    other.close()


def test_store_of_the_release_before_migrations_is_adopted(sqlite: SqlStore, path: Path) -> None:
    record = make_record(1)
    before = sqlite3.connect(path)
    before.executescript(FIRST_SCHEMA)
    before.execute(FIRST_INSERT, row_of(record))
    before.commit()
    before.close()
    with pytest.raises(SchemaOutdated, match="missing"):
        sqlite.check_schema()
    assert sqlite.migrate()[0] == "0001"
    sqlite.check_schema()
    assert sqlite.get(record.message_id) == record
    test_migrations_and_tables_say_the_same(sqlite)


def test_release_before_migrations_goes_on_storing(sqlite: SqlStore, path: Path) -> None:
    sqlite.migrate()
    before = sqlite3.connect(path)
    before.execute(FIRST_INSERT, row_of(make_record(1)))
    before.commit()
    assert [stored.replayed for stored in sqlite.add([make_record(1), make_record(2)])] == [
        True,
        False,
    ]
    assert before.execute(FIRST_INSERT, row_of(make_record(2))).rowcount == 0
    before.close()


def set_revision(store: SqlStore, revision: str) -> None:
    with store._transaction() as connection:
        table = Table(REVISION_TABLE, MetaData(), Column("version_num", String))
        connection.execute(table.update().values(version_num=revision))


def test_schema_of_a_newer_release_is_fine_and_left_alone(store: SqlStore) -> None:
    """So it is while hosts are updated one after the other, and after going back a release."""
    store.migrate()
    with store._transaction() as connection:
        connection.execute(text("ALTER TABLE messages ADD COLUMN note TEXT"))
    set_revision(store, "9999")
    store.check_schema()
    assert store.migrate() == []
    assert store.revision() == "9999"
    store.add([make_record(1)])
    assert list(store.newest()) == [make_record(1)]
    assert store.get(make_record(1).message_id) == make_record(1)


def test_older_schema_is_refused(store: SqlStore) -> None:
    store.migrate()
    set_revision(store, "0000")
    with pytest.raises(SchemaOutdated, match=f"is at 0000, this release needs {REVISION}; run `se"):
        store.check_schema()


def test_package_contains_the_migrations() -> None:
    """Alembic reads them as files; they are no package of their own that would be found."""
    project = tomli.loads((REPOSITORY / "app" / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["sealrelay.store"]
    package = REPOSITORY / "app" / "src" / "sealrelay" / "store"
    packaged = {file for pattern in patterns for file in package.glob(pattern)}
    assert packaged == set((package / "migrations").rglob("*.py"))
    assert len(packaged) > int(REVISION)
