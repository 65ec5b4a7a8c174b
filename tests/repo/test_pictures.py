"""The pictures are there, are shown, and are not older than what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs.take_pictures import FOLDER, PICTURES, RECORD, Picture
from tests.repo.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_picture_is_of_what_is_here(picture: Picture) -> None:
    taken = json.loads(RECORD.read_text())[picture.file]
    assert taken == picture.digest(), (
        f"{picture.file} is older than what it shows: bin/pictures {picture.file}"
    )


def test_every_picture_is_shown_in_the_readme_and_no_other() -> None:
    there = {path.name for path in FOLDER.iterdir()} - {RECORD.name}
    shown = set(re.findall(r"!\[[^]]+\]\(docs/pictures/([\w.]+)\)", README))
    assert there == shown == set(PICTURES)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.svg")), ids=lambda path: path.name)
def test_drawing_loads_nothing(path: Path) -> None:
    assert not re.search(r"url\((?!#)|href=|@import|<script", path.read_text())
