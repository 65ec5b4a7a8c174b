"""``python -m tests.mutations [WORD…]``: take each check out in turn, and see its tests fail.

Each in a copy of the sources and a process of its own. A check whose tests pass without it, or
fail for another reason than an assertion of theirs, is a finding, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mutations.checks import MUTATIONS, Mutation

REPOSITORY = Path(__file__).parents[2]
_SOURCES = REPOSITORY / "app" / "src"
_PATIENCE = 300
"""Seconds for the tests of one check."""
_COMMON = ["alembic", "cryptography.fernet", "cryptography.x509", "flask", "gevent.pool"]
_COMMON += ["gevent.queue", "gunicorn.app.base", "hypothesis.strategies", "msgspec"]
_COMMON += ["prometheus_client.multiprocess", "psycopg", "requests", "sqlalchemy", "yaml"]
"""What the tests and the app import, for all to share: a third of the time otherwise."""


@dataclass
class Attempt:
    """One check that is taken out, and the process that runs its tests."""

    mutation: Mutation
    folder: Path
    began: float

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def run(self) -> int:
        """In a process of its own: pytest's exit code."""
        signal.alarm(_PATIENCE)
        os.environ["PYTHONPATH"] = str(self.folder)  # for the services that the tests start
        os.environ["SEALRELAY_TEST_PATIENCE"] = "15"  # much of it is in vain here
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half of pytest's start, and of no use
        sys.path.insert(0, str(self.folder))
        with self.output.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        where = importlib.import_module("sealrelay").__file__
        assert where is not None
        assert where.startswith(str(self.folder)), f"the tests would look at {where}"
        options = ["-x", "-q", f"--junitxml={self.folder}/report.xml"]
        # A test that fails leaves things open, which is not to be told as an error of pytest's.
        options += ["-pno:cacheprovider", "-pno:unraisableexception"]
        return int(pytest.main([*options, self.mutation.test]))

    def judge(self, code: int) -> tuple[bool, str]:
        """Whether a test noticed, and which, or what happened instead."""
        report = self.folder / "report.xml"
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []  # noqa: S314 - ours
        failed = [case.get("name", "") for case in cases if case.find("failure") is not None]
        broken = [case for case in cases if case.find("error") is not None]
        if code == pytest.ExitCode.TESTS_FAILED and failed and not broken:
            return True, failed[0]
        if code == pytest.ExitCode.OK:
            return False, f"{len(cases)} tests passed"
        ending = self.output.read_text(errors="replace")[-1500:]
        return False, f"the tests ended with {code}, not with a failure\n{ending}"


def begin(mutation: Mutation, sources: Path) -> tuple[int, Attempt]:
    """Take a check out of a copy, and begin its tests; the process, and what it does."""
    folder = Path(tempfile.mkdtemp(dir=sources.parent))
    shutil.copytree(sources, folder, dirs_exist_ok=True)
    attempt = Attempt(mutation, folder, time.monotonic())
    mutation.apply(folder / "sealrelay")
    process = os.fork()
    if not process:
        code = pytest.ExitCode.INTERNAL_ERROR.value
        try:
            code = attempt.run()
        except BaseException:  # noqa: BLE001 - this is the parent's program, and must not go on
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return process, attempt


def try_all(mutations: Sequence[Mutation], sources: Path, jobs: int) -> list[bool]:
    """Try and tell of each, so many at a time; whether it was noticed."""
    waiting, under_way, noticed = list(mutations), dict[int, Attempt](), []
    while waiting or under_way:
        if waiting and len(under_way) < jobs:
            process, attempt = begin(waiting.pop(0), sources)
            under_way[process] = attempt
            continue
        process, status = os.wait()
        attempt = under_way.pop(process)
        good, what = attempt.judge(os.waitstatus_to_exitcode(status))
        shutil.rmtree(attempt.folder)
        noticed.append(good)
        seconds = time.monotonic() - attempt.began
        check = f"{attempt.mutation.file}: {attempt.mutation.check}"
        mark = "missed" if good else "NOT MISSED"
        print(f"{mark:10} {seconds:5.1f} s  {check}: {what}", flush=True)  # noqa: T201
    return noticed


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("word", nargs="*", help="only checks with one of these in their name")
    parser.add_argument("--jobs", type=int, default=3, help="how many at a time (default: 3)")
    options = parser.parse_args(arguments)
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not options.word or any(word in mutation.check for word in options.word)
    ]
    if not chosen:
        parser.error("no check has that in its name")
    os.chdir(REPOSITORY)
    for name in _COMMON:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="sealrelay-mutations-") as folder:
        sources = Path(folder, "sources")
        shutil.copytree(_SOURCES, sources)
        compileall.compile_dir(sources, quiet=2)  # once, and not by each of hundreds of processes
        noticed = try_all(chosen, sources, options.jobs)
    print(f"checks: {sum(noticed)} missed when taken out, {noticed.count(False)} not")  # noqa: T201
    return 0 if all(noticed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
