"""``sealrelay load`` and ``sealrelay verify``: services fail, and a store is damaged."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from sealrelay.history import Fate, Sent, read_history
from sealrelay.seal import parse_keyring
from sealrelay.store import Record, open_store
from sealrelay.store.schema import messages
from tests.support.command import Result, run_main
from tests.support.deployment import Deployment, run_sealrelay, wait_until


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("load") / "deployment")
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


def load_command(deployment: Deployment, history: Path, *options: str) -> list[str]:
    clients = ("client1", "client2")
    configs = [f"--config={deployment.client_config(name)}" for name in clients]
    return ["load", str(history), *configs, *options]


def verify(deployment: Deployment, history: Path, *options: str) -> Result:
    return run_main("verify", str(history), "--config", str(deployment.servers[0].config), *options)


@pytest.fixture
def history(deployed: Deployment, tmp_path: Path) -> Path:
    """Of fifty messages that all are stored."""
    path = tmp_path / "history"
    done = run_sealrelay(
        *load_command(deployed, path, "--rate=100", "--seconds=0.5", "--size=10-3000")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("50 messages: 50 acknowledged, 0 refused, 0 without an answer,")
    return path


def test_load_is_borne_out_and_tells_what_a_message_went_through(
    deployed: Deployment, history: Path
) -> None:
    told = read_history(history)
    assert sorted(told.sent) == list(range(1, 51))
    assert {sent.client for sent in told.sent.values()} == {"client1", "client2"}
    assert {told.fate(number) for number in told.sent} == {Fate.ACKNOWLEDGED}
    for number, sent in told.sent.items():
        assert sent.due == pytest.approx((number - 1) / 100)
        assert sent.due <= sent.sent <= told.answered[number].answered
        assert told.answered[number].server in {"server1", "server2"}
        assert told.answered[number].tries >= 1
    with deployed.store() as store:
        records = [store.get(bytes.fromhex(sent.message_id)) for sent in told.sent.values()]
    lengths = {len(record.token) for record in records if record is not None}
    assert len(lengths) > 10, "sizes differ"
    shown = verify(deployed, history)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.endswith("The store bears out the history.\n")
    assert "       50    and stored once\n" in shown.out
    verdict = json.loads(verify(deployed, history, "--json").out)
    assert (verdict["acknowledged"], verdict["lost"], verdict["doubled"]) == (50, [], [])


def test_message_that_was_removed_is_lost(deployed: Deployment, history: Path) -> None:
    victim = _nth(history, 7)
    _change(deployed, delete(messages).where(messages.c.id == bytes.fromhex(victim.message_id)))
    shown = verify(deployed, history)
    assert shown.code == 11
    assert "lost: number 7\n" in shown.out
    assert f"the store does not bear out {history}: 1 lost" in shown.err


def test_message_that_was_stored_again_under_another_id_is_stored_twice(
    deployed: Deployment, history: Path
) -> None:
    copied = _nth(history, 3)
    record = _record(deployed, copied.message_id)
    _store(deployed, Record(b"\x01" * 32, *_rest(record)))
    try:
        shown = verify(deployed, history)
        assert shown.code == 11
        assert "stored twice: number 3\n" in shown.out
    finally:
        _change(deployed, delete(messages).where(messages.c.id == b"\x01" * 32))


def test_message_that_is_anothers_client_now_is_seen(deployed: Deployment, history: Path) -> None:
    """It cannot be opened with that client's keys, so it is lost, whatever is stored."""
    moved = _nth(history, 5)
    _change(
        deployed,
        update(messages)
        .where(messages.c.id == bytes.fromhex(moved.message_id))
        .values(client="client1" if moved.client == "client2" else "client2"),
    )
    shown = verify(deployed, history)
    assert shown.code == 11
    assert "lost: number 5\n" in shown.out


def test_message_that_nobody_sent_is_seen(deployed: Deployment, history: Path) -> None:
    told = read_history(history)
    keyring = parse_keyring((deployed.keyrings / "client1.keys").read_text().splitlines())
    token = keyring.seal(f"sealrelay load {told.run.run} 51".encode())
    template = _record(deployed, _nth(history, 1).message_id)
    _store(
        deployed,
        Record(
            token.message_id,
            "client1",
            token.text,
            token.sealed_at,
            template.received_at,
            "server1",
        ),
    )
    shown = verify(deployed, history)
    assert shown.code == 11
    assert "stored, never sent: number 51\n" in shown.out


def test_other_messages_do_not_matter(deployed: Deployment, history: Path) -> None:
    with deployed.client() as client:
        client.send("sealrelay load 0123456789abcdef 1")
        client.send("anything")
    assert verify(deployed, history).code == 0


def test_load_goes_on_through_faults_and_is_borne_out(deployed: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "history"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sealrelay",
            *load_command(deployed, path, "--rate=50", "--to-rate=150", "--seconds=4"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for_sent(path, 30)
        deployed.servers[0].stop(signal.SIGKILL)
        _wait_for_sent(path, 100)
        deployed.servers[0].start()
        _wait_for_sent(path, 150)
        deployed.servers[1].pause()
        _wait_for_sent(path, 250)
        deployed.servers[1].resume()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        deployed.settle()
    assert process.returncode == 0, err
    assert out.startswith("400 messages: 400 acknowledged")
    assert "acknowledged, 0 refused, 0 without an answer," in err
    shown = verify(deployed, path)
    assert (shown.code, shown.err) == (0, "")


def test_load_that_is_killed_leaves_a_true_history(deployed: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "history"
    process = subprocess.Popen(
        [sys.executable, "-m", "sealrelay", *load_command(deployed, path, "--seconds=60", "-q")],
        stdout=subprocess.DEVNULL,
    )
    _wait_for_sent(path, 100)
    process.kill()
    process.wait()
    shown = verify(deployed, path)
    assert (shown.code, shown.err) == (0, "")
    assert len(read_history(path).sent) >= 100


def test_load_that_is_interrupted_waits_for_what_is_under_way(
    deployed: Deployment, tmp_path: Path
) -> None:
    path = tmp_path / "history"
    process = subprocess.Popen(
        [
            *("env", "--default-signal=INT", sys.executable, "-m", "sealrelay"),
            *load_command(deployed, path, "--seconds=60", "-q"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    _wait_for_sent(path, 50)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    told = read_history(path)
    assert process.returncode == 0
    assert 50 <= len(told.sent) < 6000
    assert told.sent.keys() == told.answered.keys()
    assert out.startswith(f"{len(told.sent)} messages: {len(told.sent)} acknowledged")
    assert verify(deployed, path).code == 0


def test_message_that_nobody_takes_has_an_unknown_fate(
    deployed: Deployment, tmp_path: Path
) -> None:
    path = tmp_path / "history"
    deployed.coordinator.stop()
    config = deployed.client_config("client1")
    short = config.with_name("short.toml")
    short.write_text(re.sub("^deadline = .*", "deadline = 0.5", config.read_text(), flags=re.M))
    try:
        done = run_sealrelay("load", str(path), f"--config={short}", "--rate=20", "--seconds=0.5")
    finally:
        deployed.settle()
    assert done.returncode == 3
    assert "10 of 10 messages were not acknowledged; the last: not acknowledged" in done.stderr
    told = read_history(path)
    assert {told.fate(number) for number in told.sent} == {Fate.UNKNOWN}
    shown = verify(deployed, path)
    assert shown.code == 0
    assert "       10  without a certain answer, and not stored\n" in shown.out


def test_load_says_what_is_wrong(deployed: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("evidence")
    taken = run_main(*load_command(deployed, path, "--seconds=0.1"))
    assert (taken.code, taken.err) == (
        7,
        f"sealrelay: {path}: is there already; name a new file\n",
    )
    nowhere = run_main(*load_command(deployed, tmp_path / "no" / "history", "--seconds=0.1"))
    assert (nowhere.code, nowhere.err) == (
        7,
        f"sealrelay: {tmp_path}/no/history: No such file or directory\n",
    )
    new = str(tmp_path / "new")
    assert run_main("load", new).code == 2
    for option in ("--size=0", "--size=5-2", "--size=x", "--rate=0", "--seconds=0.1 --rate=1"):
        assert run_main("load", new, "--config=x", *option.split()).code == 2, option
    assert run_main("load", new, "--config=none.toml").code == 8
    unreadable = verify(deployed, path)
    assert (unreadable.code, unreadable.out) == (7, "")


def _nth(history: Path, number: int) -> Sent:
    return read_history(history).sent[number]


def _record(deployment: Deployment, message_id: str) -> Record:
    with deployment.store() as store:
        record = store.get(bytes.fromhex(message_id))
    assert record is not None
    return record


def _rest(record: Record) -> tuple[str, str, int, int, str]:
    return record.client, record.token, record.sealed_at, record.received_at, record.server


def _store(deployment: Deployment, record: Record) -> None:
    store = open_store(deployment.store_url)
    store.add([record])
    store.close()


def _change(deployment: Deployment, statement: object) -> None:
    """Damage the store, past all that guards it."""
    store = open_store(deployment.store_url)
    store._run(lambda connection: connection.execute(statement))  # type: ignore[call-overload]
    store.close()


def _wait_for_sent(path: Path, count: int) -> None:
    wait_until(
        lambda: path.exists() and path.read_bytes().count(b'"event":"sent"') >= count,
        f"{count} messages are sent",
    )
