"""Updates under load: a good release takes over, a broken one is taken back; nobody notices.

The release that ran before does not come back.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.node import COORDINATOR, REPOSITORY, SERVERS, Control, Node, Sender

_SETTINGS = {
    **{unit: f"/etc/sealrelay/servers/{unit[17:21]}/server.toml" for unit in SERVERS},
    COORDINATOR: "/etc/sealrelay/coordinator/coordinator.toml",
}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of the app that a test may change."""
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    return shutil.copytree(REPOSITORY / "app", tmp_path / "app", ignore=left_out)


def _current(node: Node) -> str:
    return node.run("readlink", "-f", "/opt/sealrelay/current").strip()


def _running(node: Node) -> set[str]:
    """The releases from which the services run, by their own account."""
    probes = (node.run("sealrelay", "probe", "--config", path) for path in _SETTINGS.values())
    return {line.split()[-1] for line in probes}


@pytest.mark.long
@pytest.mark.usefixtures("settled")
def test_an_update_costs_no_message_and_replaces_what_runs(
    node: Node, control: Control, app: Path
) -> None:
    before = _current(node)
    with (app / "src" / "sealrelay" / "server.py").open("a") as module:
        module.write("\n# another release\n")
    with Sender(node) as sender:
        play = control.deploy(variables={"runtime_app_dir": str(app)})
    assert play.code == 0, play.out
    assert len(sender.finish()) > 100
    assert _current(node) != before
    assert _running(node) == {_current(node)}


@pytest.mark.usefixtures("settled")
def test_a_broken_release_is_taken_back_and_costs_no_message(
    node: Node, control: Control, app: Path
) -> None:
    before = _current(node)
    with (app / "src" / "sealrelay" / "server.py").open("a") as module:
        module.write("\nthis is no Python\n")
    with Sender(node) as sender:
        play = control.deploy(variables={"runtime_app_dir": str(app)})
    assert play.code != 0
    assert len(sender.finish()) > 100
    assert "did not come up on node1" in play.text
    assert "the previous release serves again" in play.text
    assert "SyntaxError" in play.text, "the end of the journal is shown"
    assert _current(node) == before
    assert _running(node) == {before}
    for unit in (*SERVERS, COORDINATOR):
        assert node.is_active(unit)
