"""The ``sealrelay`` command where no service is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import sealrelay
from sealrelay import cli, errors
from sealrelay.cli import _COMMANDS
from sealrelay.seal import parse_keyring
from tests.support.command import run_main

COMMANDS = [[name] for name in _COMMANDS] + [["messages", sub] for sub in ("list", "show", "count")]


def test_version_is_told() -> None:
    assert run_main("--version").out == f"sealrelay, version {sealrelay.__version__}\n"


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_every_command_and_option_explains_itself(command: list[str], option: str) -> None:
    result = run_main(*command, option)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: {' '.join(['sealrelay', *command])}")
    assert len(result.out.split("\n\n")[1].strip()) > 20, "no description"


def _options(command: click.Command) -> Iterator[click.Option]:
    yield from (option for option in command.params if isinstance(option, click.Option))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            assert sub is not None
            yield from _options(sub)


def test_every_option_is_explained() -> None:
    options = list(_options(cli.command))
    assert len(options) > 10
    assert [option.name for option in options if not option.help] == []


def test_help_tells_every_exit_code() -> None:
    text = run_main("--help").out
    told = {int(code) for code in re.findall(r"^ +(\d+) +\S", text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    used = {kind.exit_code for kind in kinds if issubclass(kind, errors.SealrelayError)}
    assert told == used | {0, 2}


def test_help_lists_every_command() -> None:
    text = run_main("--help").out
    for name in _COMMANDS:
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["send"],
        ["send", "--client", "client1"],
        ["send", "hello"],
        ["send", "--client", "../client1", "hello"],
        ["send", "--client", "client1\n", "hello"],
        ["send", "--client", "client1", "--config", "x", "hello"],
        ["send", "--client", "client1", "--count", "0", "hello"],
        ["messages", "show"],
        ["messages", "show", "xyz"],
        ["messages", "show", "00" * 31],
        ["messages", "list", "--limit", "0"],
        ["check-config"],
        ["migrate"],
        ["prune"],
        ["prune", "--config", "x", "--batch", "0"],
        ["probe"],
        ["server"],
        ["coordinator"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_code_2(arguments: list[str]) -> None:
    result = run_main(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["server", "--config", "FILE"],
        ["coordinator", "--config", "FILE"],
        ["probe", "--config", "FILE"],
        ["check-config", "FILE"],
        ["migrate", "--config", "FILE"],
        ["prune", "--config", "FILE"],
        ["send", "--config", "FILE", "hello"],
        ["messages", "list", "--config", "FILE"],
        ["messages", "count", "--config", "FILE"],
        ["messages", "show", "00" * 32, "--config", "FILE"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_missing_settings_file_is_one_line_and_exit_code_8(
    tmp_path: Path, arguments: list[str]
) -> None:
    missing = str(tmp_path / "missing.toml")
    result = run_main(*(missing if part == "FILE" else part for part in arguments))
    assert (result.code, result.out) == (8, "")
    (line,) = result.err.splitlines()
    assert line.startswith(f"sealrelay: {missing}: settings file: No such file or directory; ")


def test_client_without_files_is_told_where_they_belong() -> None:
    result = run_main("send", "--client", "nobody-of-that-name", "hello")
    assert result.code == 8
    assert "/etc/sealrelay/clients/nobody-of-that-name/client.toml" in result.err


def test_keygen_makes_another_keyring_each_time() -> None:
    first, second = run_main("keygen").out, run_main("keygen").out
    assert first != second
    for text in (first, second):
        keyring = parse_keyring(text.splitlines())
        assert keyring.open(keyring.seal(b"x")) == b"x"


def test_keygen_writes_a_file_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "payload.keys"
    result = run_main("keygen", "--out", str(file))
    assert (result.code, result.out, result.err) == (0, "", "")
    assert file.stat().st_mode & 0o7777 == 0o600
    parse_keyring(file.read_text().splitlines())


def test_keygen_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "payload.keys"
    run_main("keygen", "--out", str(file))
    before = file.read_bytes()
    result = run_main("keygen", "--out", str(file))
    assert (result.code, result.out) == (7, "")
    assert result.err == f"sealrelay: {file}: exists already; keys are never overwritten\n"
    assert file.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert run_main("keygen", "--out", str(link)).code == 7
    assert not (tmp_path / "elsewhere").exists()


def test_keygen_says_why_it_cannot_write(tmp_path: Path) -> None:
    result = run_main("keygen", "--out", str(tmp_path / "missing" / "payload.keys"))
    assert result.code == 7
    assert result.err.endswith("payload.keys: No such file or directory\n")
