"""Headless Chromium with a home of its own, where a client certificate lies or none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import PATIENCE

needs_browser = pytest.mark.skipif(
    not all(map(shutil.which, ("chromium", "certutil", "pk12util"))),
    reason="there is no browser here: apt-get install chromium libnss3-tools",
)


class Browser:
    """What an operator does to a browser once: import the CA, and a leaf with its key.

    Chromium finds both in the NSS database of its home. Which leaf a site is shown it would ask;
    a preference of its profile answers, in the form that its settings page writes.
    """

    def __init__(self, folder: Path, site: str, ca: Path, leaf: Path | None = None) -> None:
        """``site``: https://host:port; ``leaf``: a folder with cert.pem and key.pem."""
        self._folder, self._home = folder, folder / "home"
        database = self._home / ".pki" / "nssdb"
        database.mkdir(parents=True)
        self._database = f"sql:{database}"
        _run("certutil", "-N", "-d", self._database, "--empty-password")
        _run("certutil", "-A", "-d", self._database, "-t", "C,,", "-n", "CA", "-i", str(ca))
        if leaf is not None:
            self._import(leaf)
        chooses: dict[str, Any] = {f"{site},*": {"setting": {"filters": [{}]}}}
        settings = {"content_settings": {"exceptions": {"auto_select_certificate": chooses}}}
        preferences = folder / "profile" / "Default" / "Preferences"
        preferences.parent.mkdir(parents=True)
        preferences.write_text(json.dumps({"profile": settings}))

    def _import(self, leaf: Path) -> None:
        packed = self._folder / "leaf.p12"
        cert, key = str(leaf / "cert.pem"), str(leaf / "key.pem")
        out = ["-name", leaf.name, "-passout", "pass:", "-out", str(packed)]
        _run("openssl", "pkcs12", "-export", "-in", cert, "-inkey", key, *out)
        _run("pk12util", "-d", self._database, "-i", str(packed), "-W", "")

    def read(self, url: str) -> str:
        """What the browser has made of a page, as HTML; of none, nothing or a page of its own."""
        return self._open(url, "--dump-dom").stdout

    def take_picture(
        self, url: str, *, width: int = 1200, height: int = 1600, dark: bool = False
    ) -> Path:
        """A picture (PNG) of a page's upper part, in pixels."""
        picture = self._folder / f"{width}-{'dark' if dark else 'light'}.png"
        self._open(
            url,
            f"--screenshot={picture}",
            f"--window-size={width},{height}",
            "--hide-scrollbars",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        )
        return picture

    @contextlib.contextmanager
    def stay(self, url: str) -> Iterator[None]:
        """Have a page open, as an operator has on a screen."""
        # without a debugger that could ask for more, headless ends after the first look
        command, options = self._command("--remote-debugging-port=0", url)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, **options) as process:
            try:
                yield
            finally:
                process.terminate()

    def _open(self, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, options = self._command(*arguments, url)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
        )
        assert done.returncode == 0, done.stderr
        return done

    def _command(self, *arguments: str) -> tuple[list[str], dict[str, Any]]:
        command = ["setpriv", "--pdeathsig", "KILL", "chromium", "--headless", "--disable-gpu"]
        # root, as CI is, has no sandbox; nothing is opened but pages of ours
        command += ["--no-sandbox", f"--user-data-dir={self._folder / 'profile'}"]
        command += ["--disable-background-networking", "--disable-component-update"]
        kept = {name: value for name, value in os.environ.items() if "XDG" not in name}
        return [*command, *arguments], {"env": {**kept, "HOME": str(self._home)}}


def parse_page(html: str) -> ET.Element:
    """A page of ours, sent by a coordinator or written down by a browser."""
    # what HTML has and XML has not
    return ET.fromstring(re.sub(r"(?i)<!doctype html>|<(meta|br)\b[^>]*>", "", html))  # noqa: S314 - ours


def text_of(page: ET.Element, path: str) -> str:
    """The text of the one element at an XPath, on one line."""
    (element,) = page.findall(path)
    return " ".join("".join(element.itertext()).split())


def read_corner(picture: Path) -> tuple[int, int, int]:
    """The colour at the top left of a PNG, which no filter of the format (§9) can change."""
    data = picture.read_bytes()
    at, packed = 8, b""
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += 12 + size
    red, green, blue = zlib.decompress(packed)[1:4]
    return red, green, blue


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
