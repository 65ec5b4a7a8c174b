"""Log lines: their form, when they are written, and that none is lost or overtaken."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from threading import Thread

import gevent
import pytest

from sealrelay.journal import configure_logging, gather_lines, note

_log = logging.getLogger("sealrelay.tests")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def _gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines go to the journal, those of a turn in one go."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    configure_logging("info")
    gather_lines()


def test_lines_for_a_terminal_have_time_and_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    configure_logging("info")
    _log.debug("unseen")
    _log.info("%d of %s", 1, "many")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO 1 of many\n", capsys.readouterr().err
    )


def test_every_line_for_the_journal_has_its_priority(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    configure_logging("debug")
    _log.debug("a")
    _log.info("b\nc")
    _log.critical("d")
    try:
        raise ValueError("e")
    except ValueError:
        _log.exception("f")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == ["<7>a", "<6>b", "<6>c", "<2>d"]
    assert lines[4] == "<3>f"
    assert lines[-1] == "<3>ValueError: e"
    assert all(line.startswith("<3>") for line in lines[4:])


@pytest.mark.usefixtures("_gathering")
def test_lines_of_one_turn_are_written_together_at_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _log.info("first")
    _log.info("second")
    assert capsys.readouterr().err == ""
    gevent.sleep(0)
    assert capsys.readouterr().err == "<6>first\n<6>second\n"
    _log.info("third")
    gevent.sleep(0)
    assert capsys.readouterr().err == "<6>third\n"


def test_lines_of_one_turn_are_written_together_in_a_worker() -> None:
    """There gevent has patched threads, and each message is a greenlet's."""
    program = """
from gevent import monkey; monkey.patch_all()
import gevent, logging, os, sys
from sealrelay.journal import configure_logging, gather_lines
configure_logging("info")
gather_lines()
gevent.joinall([gevent.spawn(logging.info, "line %d", number) for number in range(3)])
"""
    environ = {**os.environ, "JOURNAL_STREAM": "8:1"}
    reading, writing = os.pipe2(os.O_DIRECT)  # what is written apart is read apart
    try:
        subprocess.run([sys.executable, "-c", program], stderr=writing, env=environ, check=True)
        assert os.read(reading, 4096) == b"<6>line 0\n<6>line 1\n<6>line 2\n"
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.usefixtures("_gathering")
def test_warning_is_written_at_once_after_what_was_said_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _log.info("before")
    _log.warning("now")
    assert capsys.readouterr().err == "<6>before\n<4>now\n"
    _log.info("after")
    logging.shutdown()
    assert capsys.readouterr().err == "<6>after\n", "nothing is lost where a process ends"
    gevent.sleep(0)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_gathering")
def test_a_noted_line_is_as_every_other_one(capsys: pytest.CaptureFixture[str]) -> None:
    _log.info("first")
    note(_log, "a %s in it")
    _log.info("third")
    gevent.sleep(0)
    assert capsys.readouterr().err == "<6>first\n<6>a %s in it\n<6>third\n"
    logging.getLogger().setLevel("WARNING")
    note(_log, "unseen")
    gevent.sleep(0)
    assert capsys.readouterr().err == ""


def test_a_noted_line_for_a_terminal_has_time_and_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    configure_logging("info")
    note(_log, "noted")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO noted\n", capsys.readouterr().err
    )


def test_a_noted_line_reaches_other_handlers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        note(_log, "a %s in it")
    assert caplog.messages == ["a %s in it"]


@pytest.mark.usefixtures("_gathering")
def test_other_threads_write_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _log.info("kept")
    thread = Thread(target=_log.info, args=("from elsewhere",))
    thread.start()
    thread.join()
    assert capsys.readouterr().err == "<6>from elsewhere\n"
    gevent.sleep(0)
    assert capsys.readouterr().err == "<6>kept\n"


def test_line_that_cannot_be_rendered_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    configure_logging("info")
    _log.info("%d", "no number")
    _log.info("next")
    told = capsys.readouterr().err
    assert "Logging error" in told
    assert told.endswith("<6>next\n")
