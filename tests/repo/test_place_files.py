"""Folders, files and links of a role are put in place by one run; what is right stays."""

from __future__ import annotations

import contextlib
import grp
import io
import json
import locale
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic

from tests.repo.conftest import REPOSITORY, load_module, run_playbook

_PATH = REPOSITORY / "plugins" / "modules" / "place_files.py"
_ME = {
    "owner": pwd.getpwuid(os.getuid()).pw_name,
    "group": grp.getgrgid(os.getgid()).gr_name,
}
_NOBODY = {"owner": "nobody", "group": grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


_MODULE = load_module("plugins/modules/place_files.py")


def _ask(arguments: dict[str, Any]) -> bytes:
    """The module's input; what it places is ours unless something else is asked for."""
    for place in [*arguments.get("folders", []), *arguments.get("files", [])]:
        for key, name in _ME.items():
            place.setdefault(key, name)
    return json.dumps({"ANSIBLE_MODULE_ARGS": arguments}, default=str).encode()


def _run(**arguments: Any) -> dict[str, Any]:
    """Run the module in this process, where it takes no second; tells what it says."""
    basic._ANSIBLE_ARGS = _ask(arguments)
    basic._ANSIBLE_PROFILE = "legacy"  # what ansible-core 2.19 and later want to know
    before = locale.setlocale(locale.LC_ALL)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
            _MODULE.main()
    finally:
        locale.setlocale(locale.LC_ALL, before)
    said: dict[str, Any] = json.loads(out.getvalue())
    assert bool(ended.value.code) == bool(said.get("failed"))
    return said


def _run_alone(**arguments: Any) -> dict[str, Any]:
    """Run the module as a program, of a user whose files nobody else may see."""
    done = subprocess.run(
        [sys.executable, _PATH],
        input=_ask(arguments),
        capture_output=True,
        check=True,
        umask=0o077,
        timeout=60,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _pretend(**arguments: Any) -> dict[str, Any]:
    return _run(_ansible_check_mode=True, _ansible_diff=True, **arguments)


def _mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Any]:
    """A folder with a file and a link, of which nothing is there yet."""
    home = tmp_path / "home"
    return {
        "folders": [{"path": home, "mode": "0750"}],
        "files": [{"path": home / "settings", "content": "a = 1\n", "mode": "0640"}],
        "links": [{"path": home / "current", "target": "settings"}],
        "absent": [home / "former"],
    }


def test_what_is_missing_is_made_and_a_second_run_changes_nothing(
    places: dict[str, Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    said = _run(**places)
    assert said["changed"]
    assert said["places"] == [str(home), str(home / "settings"), str(home / "current")]
    assert (_mode(home), _mode(home / "settings")) == (0o750, 0o640)
    assert (home / "settings").read_text() == "a = 1\n"
    assert (home / "current").readlink() == Path("settings")
    assert sorted(path.name for path in home.iterdir()) == ["current", "settings"]
    inode = (home / "settings").stat().st_ino
    again = _run(**places)
    assert (again["changed"], again["places"]) == (False, [])
    assert (home / "settings").stat().st_ino == inode


@needs_root
def test_owners_are_given_and_mended(tmp_path: Path) -> None:
    home = tmp_path / "home"
    places = {
        "folders": [{"path": home, "mode": "0700", **_NOBODY}],
        "files": [{"path": home / "settings", "content": "a = 1\n", "mode": "0600", **_NOBODY}],
    }
    nobody = pwd.getpwnam("nobody")
    for path in (None, home, home / "settings"):
        if path is not None:
            os.chown(path, 0, 0)
        assert _run(**places)["changed"]
        for place in (home, home / "settings"):
            assert (place.stat().st_uid, place.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert not _run(**places)["changed"]


def test_parents_can_be_entered_by_everybody_whatever_the_umask(tmp_path: Path) -> None:
    _run_alone(folders=[{"path": tmp_path / "a" / "b" / "c", "mode": "0700"}])
    modes = [_mode(tmp_path / path) for path in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o755, 0o700]


def test_what_somebody_has_changed_is_mended(places: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings, link = home / "settings", home / "current"
    _run(**places)
    settings.write_text("a = 2\n")
    assert _run(**places)["places"] == [str(settings)]
    assert settings.read_text() == "a = 1\n"
    assert _mode(settings) == 0o640
    settings.chmod(0o666)
    home.chmod(0o777)
    assert _run(**places)["places"] == [str(home), str(settings)]
    assert (_mode(home), _mode(settings)) == (0o750, 0o640)
    link.unlink()
    link.symlink_to("/elsewhere")
    assert _run(**places)["places"] == [str(link)]
    assert link.readlink() == Path("settings")
    link.unlink()
    link.write_text("a file")
    assert _run(**places)["places"] == [str(link)]
    assert link.readlink() == Path("settings")
    assert not _run(**places)["changed"]


def test_file_that_does_not_pass_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    file = {"path": path, "mode": "0640", "validate": ["/bin/sh", "-c", "grep -q good %s"]}
    assert _run(files=[{**file, "content": "good\n"}])["changed"]
    file["validate"] = ["/bin/sh", "-c", "grep -q good %s || { echo %s: is bad >&2; exit 3; }"]
    refused = _run(files=[{**file, "content": "bad\n"}])
    assert refused["msg"] == f"{path} would not be valid: {path}: is bad"
    assert path.read_text() == "good\n"
    pretended = _pretend(files=[{**file, "content": "bad\n"}])
    assert pretended["msg"] == refused["msg"]
    assert list(tmp_path.iterdir()) == [path], "no draft is left"
    assert not _run(files=[{**file, "content": "good\n", "validate": ["/bin/false"]}])["changed"]


def test_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path, victim = tmp_path / "settings", tmp_path / "victim"
    file = {"path": path, "mode": "0644"}
    # With the very content, too: whom the folder belongs to must not choose what is read.
    for text in ("secret\n", "a = 1\n"):
        victim.write_text(text)
        victim.chmod(0o600)
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
        assert not _run(files=[file])["changed"], "without content there is no file to look after"
        said = _run(files=[{**file, "content": "a = 1\n"}], _ansible_diff=True)
        assert said["changed"]
        assert "secret" not in json.dumps(said)
        assert not path.is_symlink()
        assert path.read_text() == "a = 1\n"
        assert (victim.read_text(), _mode(victim)) == (text, 0o600)


def test_link_in_the_place_of_a_draft_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret\n")
    for name in ("settings.new", "current.new"):
        (tmp_path / name).symlink_to(victim)
    _run(
        files=[{"path": tmp_path / "settings", "mode": "0644", "content": "a = 1\n"}],
        links=[{"path": tmp_path / "current", "target": "settings"}],
    )
    assert victim.read_text() == "secret\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "settings", "victim"]


def test_pipe_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    """Nobody writes into it: who reads it without looking waits forever."""
    path = tmp_path / "settings"
    os.mkfifo(path)
    assert not _run(files=[{"path": path, "mode": "0644"}])["changed"]
    assert _run_alone(files=[{"path": path, "mode": "0644", "content": "a = 1\n"}])["changed"]
    assert path.read_text() == "a = 1\n"


def test_what_stands_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        for run in (_run, _pretend):
            refused = run(folders=[{"path": tmp_path / name, "mode": "0755"}])
            assert refused["msg"] == f"{tmp_path / name} is there and is no folder; move it away"
    assert _mode(tmp_path / "victim") == 0o700


def test_folder_in_the_place_of_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    for refused in (
        _run(files=[{"path": path, "mode": "0644", "content": "x"}]),
        _run(files=[{"path": path, "mode": "0644"}]),
        _run(links=[{"path": path, "target": "x"}]),
        _run(absent=[path]),
    ):
        assert refused["msg"] == f"{path} is a folder; move it away"
    assert path.is_dir()


def test_what_must_not_be_there_is_removed(tmp_path: Path) -> None:
    path, link, target = tmp_path / "former", tmp_path / "link", tmp_path / "target"
    for file in (path, target):
        file.write_text("x")
    link.symlink_to(target)
    absent = [path, link, tmp_path / "never", target / "below a file"]
    assert _pretend(absent=absent)["places"] == [str(path), str(link)]
    assert path.exists()
    assert _run(absent=absent)["places"] == [str(path), str(link)]
    assert list(tmp_path.iterdir()) == [target]
    assert not _run(absent=absent)["changed"]


def test_rehearsal_tells_what_would_change_and_changes_nothing(
    places: dict[str, Any], tmp_path: Path
) -> None:
    said = _pretend(**places)
    assert said["changed"]
    assert len(said["places"]) == 3, "also below a folder that is not there yet"
    assert list(tmp_path.iterdir()) == []
    _run(**places)
    assert not _pretend(**places)["changed"]
    home = tmp_path / "home"
    home.chmod(0o700)
    (home / "settings").write_text("a = 2\n")
    (home / "former").write_text("b\n")
    (home / "current").unlink()
    said = _pretend(**places)
    assert said["places"] == [str(home / name) for name in ("", "settings", "current", "former")]
    shown = {diff["before_header"]: (diff["before"], diff["after"]) for diff in said["diff"]}
    assert shown[str(home / "settings")] == ("a = 2\n", "a = 1\n")
    assert shown[str(home / "former")] == ("b\n", "")
    assert shown[str(home / "current")] == ("", "settings\n")
    assert [line.split()[-1] for line in shown[str(home)]] == ["0700", "0750"]
    assert (_mode(home), (home / "settings").read_text()) == (0o700, "a = 2\n")
    assert sorted(path.name for path in home.iterdir()) == ["former", "settings"]


def test_without_content_only_owner_and_mode_are_looked_after(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    file = {"path": path, "mode": "0600"}
    assert not _run(files=[file])["changed"]
    assert not path.exists()
    path.write_text("secret\n")
    path.chmod(0o644)
    said = _run(files=[file], _ansible_diff=True)
    assert said["places"] == [str(path)]
    assert "secret" not in json.dumps(said)
    assert (path.read_text(), _mode(path)) == ("secret\n", 0o600)
    assert not _run(files=[file])["changed"]


def test_unknown_owner_is_an_error_except_in_a_rehearsal(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    for unknown in ({"owner": "no-such-user"}, {"group": "no-such-group"}):
        places = {"files": [{"path": path, "mode": "0644", "content": "a = 1\n", **unknown}]}
        assert _pretend(**places)["places"] == [str(path)]
        refused = _run(**places)
        assert str(path) in refused["msg"]
        assert next(iter(unknown.values())) in refused["msg"]
        assert not path.exists()
    path.write_text("a = 1\n")
    assert _pretend(**places)["places"] == [str(path)], "its owner would change"


def test_play_finds_the_module(places: dict[str, Any], tmp_path: Path) -> None:
    for place in [*places["folders"], *places["files"]]:
        place.update(_ME)
    task = {"place_files": json.loads(json.dumps(places, default=str))}
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        # Twice, so that the recap says whether the second changes anything.
        "tasks": [task, task],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = run_playbook(tmp_path, "-i", "localhost,", "play.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok=2    changed=1 " in done.stdout
    assert (tmp_path / "home" / "current").read_text() == "a = 1\n"
