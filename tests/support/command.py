"""The ``sealrelay`` command within the tests' own process, for what needs no process of its own."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from sealrelay.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run_main(*arguments: str, stdin: bytes = b"") -> Result:
    """Run ``sealrelay ARGUMENTS`` and tell its exit code and what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    with (
        mock.patch.object(sys, "argv", ["sealrelay", *arguments]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exited:
            code = exited.code if isinstance(exited.code, int) else int(exited.code is not None)
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return Result(code, *texts)
