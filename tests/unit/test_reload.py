"""Files are taken when they are at rest and right, once; what is wrong is told once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from sealrelay import credentials, reload
from sealrelay.config import CoordinatorSettings, load_settings
from sealrelay.credentials import Credentials
from sealrelay.errors import ConfigError
from sealrelay.reload import Reloadable, fingerprint, stamp_files
from tests.support.deployment import Deployment


class Folder:
    """A folder of texts; ``on_read`` happens in the middle of each reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readings = 0
        self.heard: list[str] = []
        self.on_read: Callable[[], object] = lambda: None

    def put(self, text: str, name: str = "a") -> None:
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / name)

    def read(self) -> list[str]:
        self.readings += 1
        texts = [path.read_text() for path in sorted(self.folder.iterdir())]
        self.on_read()
        if "bad" in texts:
            raise ConfigError("a: it is bad")
        return texts

    def paths(self) -> list[Path]:
        return [self.folder, *sorted(self.folder.iterdir())]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.put("old")
    return made


@pytest.fixture
def files(folder: Folder) -> Reloadable[list[str]]:
    return Reloadable("texts", folder.paths, folder.read, folder.heard.append)


def test_change_is_taken_at_the_second_look_that_finds_the_same(
    folder: Folder, files: Reloadable[list[str]]
) -> None:
    assert (files.look(), files.look(), folder.readings) == (False, False, 1)
    folder.put("newer")
    assert not files.look()
    folder.put("newest")
    assert not files.look()
    assert (files.value, folder.readings) == (["old"], 1)
    assert files.look()
    assert (files.value, folder.readings) == (["newest"], 2)
    assert not files.look()


def test_file_that_comes_or_goes_is_a_change(folder: Folder, files: Reloadable[list[str]]) -> None:
    folder.put("more", "b")
    assert (files.look(), files.look()) == (False, True)
    (folder.folder / "b").unlink()
    assert (files.look(), files.look(), files.value) == (False, True, ["old"])


@pytest.mark.parametrize("text", ["half of it", "bad"])
def test_what_changes_while_it_is_read_is_neither_taken_nor_told(
    folder: Folder, files: Reloadable[list[str]], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.put(text)
    files.look()
    folder.on_read = lambda: folder.put("all of it")
    assert not files.look()
    folder.on_read = lambda: None
    assert files.value == ["old"]
    assert (files.look(), files.look(), files.value) == (False, True, ["all of it"])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_wrong_is_told_once_for_each_change(
    folder: Folder, files: Reloadable[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    for times in (1, 2):
        folder.put("bad")
        assert not any(files.look() for _ in range(9))
        told = [record.getMessage() for record in caplog.records]
        fact = "The texts in use stay in use, the new ones don't fit: a: it is bad"
        assert told == [fact] * times
        assert folder.readings == 1 + times
    assert files.value == ["old"]
    assert folder.heard == ["refused"] * 2
    folder.put("good")
    assert (files.look(), files.look(), folder.heard[2:]) == (False, True, ["ok"])


def test_fingerprint_is_that_of_the_files_in_use(
    folder: Folder, files: Reloadable[list[str]]
) -> None:
    def there() -> str:
        return fingerprint(stamp_files(folder.paths()))

    first = there()
    assert fingerprint(files.in_use) == first
    folder.put("old")  # the same text in another file: nobody has read that one
    assert fingerprint(files.in_use) == first != there()
    assert [files.look() for _ in range(2)]
    assert fingerprint(files.in_use) == there()
    folder.put("bad")
    assert [files.look() for _ in range(2)]
    assert fingerprint(files.in_use) != there()


def test_what_was_wrong_is_tried_again_since_time_may_heal_it(
    folder: Folder, files: Reloadable[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_TRY_AGAIN", 0.0)
    folder.put("bad")
    assert not any(files.look() for _ in range(9))
    assert folder.readings > 3


def test_crl_that_has_run_out_is_told_again_and_again_but_not_at_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = Deployment(tmp_path / "deployment")
    assert credentials._REMIND == 3600
    deployment.publish_crl(starts=timedelta(hours=-2), ends=timedelta(hours=-1))
    settings = load_settings(deployment.coordinator.config, CoordinatorSettings)
    shown = Credentials(settings)
    for _ in range(9):
        shown.look()
    assert len([r for r in caplog.records if "has run out" in r.getMessage()]) == 1
    assert settings.tls.crl is not None
    assert settings.tls.crl in caplog.text
    monkeypatch.setattr(credentials, "_REMIND", 0.0)
    fresh = Credentials(settings)
    caplog.clear()
    for _ in range(3):
        fresh.look()
    assert len([r for r in caplog.records if "has run out" in r.getMessage()]) == 3
