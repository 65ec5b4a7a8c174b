"""Stored messages are sealed anew beside running servers, and stay the messages that they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from cryptography.fernet import Fernet
from msgspec.structs import replace

from sealrelay.config import ServerSettings, load_settings
from sealrelay.errors import Unreachable
from sealrelay.keyrings import Key, format_keys, read_folder, read_keys
from sealrelay.seal import parse_keyring, parse_token
from sealrelay.store import NewToken, Record, SqlStore, StoreError, open_store
from tests.support.command import Result, run_main
from tests.support.deployment import PATIENCE, Deployment, put_file, run_sealrelay, wait_until

NOW = 4_000_000_000
"""Seconds since the epoch, long after the tests: clocks have been set back, too."""
OLD, NEW, NEXT, RETIRED, FOREIGN = (Fernet.generate_key().decode("ascii") for _ in range(5))


@pytest.fixture
def made(tmp_path: Path, store_url: str) -> Iterator[Deployment]:
    """On each kind of store. Not started."""
    deployment = Deployment(tmp_path / "deployment", store_url)
    yield deployment
    deployment.stop()


def config_of(made: Deployment) -> str:
    return str(made.servers[0].config)


def reseal(made: Deployment, *options: str) -> Result:
    return run_main("reseal", "--config", config_of(made), *options)


def write_keys(made: Deployment, client: str, *keys: Key, retired: tuple[Key, ...] = ()) -> None:
    put_file(made.keyrings / f"{client}.keys", format_keys(keys).encode())
    if retired:
        put_file(made.keyrings / f"{client}.retired", format_keys(retired).encode())
        settled = time.time() - 60
        for name in (f"{client}.keys", f"{client}.retired"):
            os.utime(made.keyrings / name, (settled, settled))


def make_record(number: int, key: str, client: str = "client1", size: int = 10) -> Record:
    text = Fernet(key).encrypt_at_time(f"{number:0{size}}".encode(), NOW + number)
    token = parse_token(text.decode())
    return Record(
        token.message_id, client, token.text, NOW + number, NOW * 1000 + number, "server1"
    )


def open_writer(made: Deployment) -> SqlStore:
    return open_store(load_settings(made.servers[0].config, ServerSettings).store)


def fill(made: Deployment, *records: Record) -> None:
    store = open_writer(made)

    def is_added() -> bool:
        try:
            store.add(records)
        except StoreError:  # it took longer than a store waits, so once more
            return False
        return True

    wait_until(is_added, "the records are stored")
    store.close()


def stored(made: Deployment) -> list[Record]:
    with made.store() as store:
        return list(store.newest())


def key_of(record: Record) -> str:
    for key in (OLD, NEW, NEXT, RETIRED, FOREIGN):
        try:
            Fernet(key).decrypt(record.token)
        except Exception:  # noqa: BLE001, S112 - whatever it raises, this is not the key
            continue
        return key
    return ""


@pytest.mark.parametrize("batch", ["1", "7", "200"])
def test_messages_are_sealed_with_the_newest_key_and_nothing_else_of_them_changes(
    made: Deployment, batch: str
) -> None:
    keys = [OLD, NEW, NEXT, RETIRED]
    records = [make_record(number, keys[number % 4]) for number in range(100)]
    fill(made, *records)
    superseded = Key(OLD, NOW)
    write_keys(
        made, "client1", Key(NEW), Key(NEXT, is_next=True), superseded, retired=(Key(RETIRED, 1),)
    )
    told = reseal(made, "--batch", batch)
    # On a slow machine it tells meanwhile how far it is.
    assert (told.code, told.out) == (0, "Resealed 50 messages of 100.\n")
    found = stored(made)
    assert [replace(record, token="") for record in found] == [
        replace(record, token="") for record in records
    ]
    for number, (before, after) in enumerate(zip(records, found, strict=True)):
        if keys[number % 4] in (NEW, NEXT):
            assert after == before, "with the key in use, or with the next one, it is left alone"
            continue
        assert key_of(after) == NEW
        assert after.sealed_at == NOW + number
        assert int(parse_keyring([NEW]).open(parse_token(after.token))) == number
    assert reseal(made).out == "Resealed 0 messages of 100.\n"


def test_token_that_was_resealed_is_refused_and_the_one_that_was_sent_is_known(
    made: Deployment,
) -> None:
    """Whoever reads the store and has the client's leaf can hand it in, within ``token_ttl``."""
    made.start()
    with made.client() as client:
        sent = client.seal("once")
        client.send_token(sent)
    (before,) = stored(made)
    for _ in range(2):  # what was resealed before is resealed again
        rotate(made)
        assert reseal(made).out == "Resealed 1 messages of 1.\n"
        (after,) = stored(made)
        assert after == replace(before, token=after.token)
        assert after.token != sent.text
        refused = hand_in(made, after.token)
        assert refused.status_code == 422
        assert refused.json()["type"] == "urn:sealrelay:problem:token-refused"
        assert is_replayed(made, sent.text)
        assert stored(made) == [after]
    shown = run_main("messages", "list", "--config", config_of(made)).out
    assert shown.split()[-1] == "once"


def test_retired_keys_are_forgotten_when_no_message_needs_them(made: Deployment) -> None:
    fill(
        made,
        *(make_record(number, RETIRED) for number in range(20)),
        *(make_record(number, RETIRED, "client2") for number in range(20, 40)),
        make_record(40, FOREIGN, "client2"),
        make_record(41, RETIRED, "client3"),
    )
    write_keys(made, "client1", Key(NEW), Key(OLD, NOW), retired=(Key(RETIRED, NOW),))
    write_keys(made, "client2", Key(NEW), retired=(Key(RETIRED, NOW),))
    put_file(made.keyrings / "client3.retired", format_keys([Key(RETIRED, NOW)]).encode())
    assert reseal(made).out.startswith("Resealed 40 messages of 42.\n")
    assert (made.keyrings / "client1.retired").exists(), "only when it is asked for"
    told = reseal(made, "--forget")
    assert (told.code, told.err) == (0, "")
    resealed, left2, left3, forgot = told.out.splitlines()
    assert resealed == "Resealed 0 messages of 42."
    assert left2.startswith("1 messages of client2 stay as they are: ")
    assert left3.startswith("1 messages of client3 stay as they are: ")
    assert forgot == "Forgot 1 keys."
    assert not (made.keyrings / "client1.retired").exists()
    assert read_keys(made.keyrings / "client1.keys") == [Key(NEW), Key(OLD, NOW)]
    assert read_folder(made.keyrings)["client2"].retired == [Key(RETIRED, NOW)]
    assert read_folder(made.keyrings)["client3"].retired == [Key(RETIRED, NOW)]
    shown = run_main("messages", "list", "--config", config_of(made)).out
    assert shown.count("no key of ours opens it") == 1, "the foreign one"


def test_retired_keys_open_what_is_stored_for_those_who_read_it(made: Deployment) -> None:
    record = make_record(1, RETIRED)
    fill(made, record)
    write_keys(made, "client1", Key(NEW))
    show = ("messages", "show", "--config", config_of(made), record.message_id.hex())
    assert "no key of ours opens it" in run_main(*show).out
    write_keys(made, "client1", Key(NEW), retired=(Key(RETIRED, NOW),))
    assert run_main(*show).out.split()[-1] == f"{1:010}"


def test_forgetting_waits_for_what_was_opened_before_the_key_was_retired(made: Deployment) -> None:
    """A server may have it in its hands: it is stored a moment later, and then needs the key."""
    write_keys(made, "client1", Key(NEW), retired=(Key(RETIRED, NOW),))
    os.utime(made.keyrings / "client1.retired")
    process = subprocess.Popen(
        [sys.executable, "-m", "sealrelay", "reseal", "--config", config_of(made), "--forget"],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1)
    fill(made, make_record(1, RETIRED))
    out, _ = process.communicate(timeout=2 * PATIENCE)
    assert out == "Resealed 1 messages of 1.\nForgot 1 keys.\n"
    assert key_of(stored(made)[0]) == NEW


def test_messages_that_change_or_go_meanwhile_are_no_error(made: Deployment) -> None:
    records = [make_record(number, OLD) for number in range(3)]
    fill(made, *records)
    store = open_writer(made)
    other = make_record(1, NEW).token
    changed = store.replace_tokens([NewToken(records[1].message_id, records[1].token, other)])
    assert changed.replaced == 1
    wanted = [NewToken(record.message_id, record.token, "new") for record in records]
    wanted.append(NewToken(bytes(32), "old", "new"))
    assert store.replace_tokens(wanted).replaced == 2
    store.close()
    assert [record.token for record in stored(made)] == ["new", other, "new"]


def test_large_messages_are_resealed_too(made: Deployment) -> None:
    for number in range(6):
        fill(made, make_record(number, OLD, size=700_000))
    write_keys(made, "client1", Key(NEW), Key(OLD, NOW))
    assert reseal(made).out == "Resealed 6 messages of 6.\n"
    assert {key_of(record) for record in stored(made)} == {NEW}


def test_store_without_schema_says_what_to_do(made: Deployment, tmp_path: Path) -> None:
    config = made.servers[0].config.with_name("other.toml")
    text = made.servers[0].config.read_text()
    config.write_text(text.replace(made.store_url, f"sqlite:///{tmp_path}/none.db"))
    result = run_main("reseal", "--config", str(config))
    assert result.code == 9
    assert "run `sealrelay migrate`" in result.err
    assert not (tmp_path / "none.db").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_resealing_as_root_leaves_the_store_to_its_owner_and_forgets_as_root(
    tmp_path: Path,
) -> None:
    """The folder of the keyrings is root's, that of the store is the servers'."""
    made = Deployment(tmp_path / "deployment")
    fill(made, make_record(1, RETIRED))
    write_keys(made, "client1", Key(NEW), retired=(Key(RETIRED, NOW),))
    for folder in (made.folder, *made.folder.parents):
        if folder == Path("/tmp"):  # noqa: S108 - which everybody may enter
            break
        folder.chmod(0o755)
    for path in (made.folder, *made.folder.glob("messages.db*")):
        os.chown(path, 12345, 12346)
    for keyring in made.keyrings.iterdir():
        os.chown(keyring, 0, 12346)
        keyring.chmod(0o640)
    forget = ("reseal", "--config", config_of(made), "--forget")
    result = run_sealrelay(*forget)
    if result.returncode == Unreachable.exit_code:  # a store that is slow, once more
        result = run_sealrelay(*forget)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Resealed 1 messages of 1.\nForgot 1 keys.\n"
    assert not (made.keyrings / "client1.retired").exists()
    owners = {path.stat().st_uid for path in made.folder.glob("messages.db*")}
    assert owners == {12345}
    (made.folder / "messages.db").unlink()
    failed = run_sealrelay("reseal", "--config", config_of(made), "--forget")
    assert (failed.returncode, failed.stdout) == (9, "")
    (line,) = failed.stderr.splitlines()
    assert "run `sealrelay migrate`" in line


def rotate(made: Deployment) -> None:
    """What the playbook does, without waiting for token_ttl."""
    keyring = made.keyrings / "client1.keys"
    own = made.client_config("client1").parent / "payload.keys"
    next_keys = own.with_name("payload.keys.next")
    assert run_main("keygen", "--out", str(next_keys)).code == 0

    def merge(text: str) -> None:
        merged = run_main("keyring", "merge", str(keyring), stdin=text.encode())
        assert merged.out == "written\n", merged
        wait_reloaded(made)

    merge(f"{own.read_text()}\n# next\n{next_keys.read_text()}")
    next_keys.replace(own)
    merge(own.read_text())


def wait_reloaded(made: Deployment) -> None:
    for server in made.servers:
        result = server.probe("--reloaded", "--wait", str(PATIENCE))
        assert result.code == 0, result.err


def is_done(made: Deployment, newest: str) -> bool:
    keyring = parse_keyring([newest])
    try:
        for record in stored(made):
            keyring.open(parse_token(record.token))
    except ValueError:
        return False
    return True


def test_rotation_beside_a_load_loses_doubles_and_refuses_nothing(
    made: Deployment, tmp_path: Path
) -> None:
    """Reseal is killed again and again, and finished by the last one."""
    made.start()
    with made.client() as client:
        first = client.seal("sent before, and again after")
        assert not client.send_token(first).replayed
    history = tmp_path / "history.jsonl"
    program = [sys.executable, "-m", "sealrelay"]
    client1 = str(made.client_config("client1"))
    load = subprocess.Popen(
        [*program, "load", "--config", client1, "--rate", "100", "--seconds", "15", str(history)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    command = [*program, "reseal", "--config", config_of(made), "--batch", "5"]
    wait_until(lambda: made.stored() > 200, "the load is running")
    killed = 0
    for _ in range(2):
        rotate(made)
        for _ in range(3):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            time.sleep(0.6 + 0.2 * killed)
            process.send_signal(signal.SIGKILL)
            killed += process.wait(PATIENCE) == -signal.SIGKILL
    assert killed > 0
    out, _ = load.communicate(timeout=3 * PATIENCE)
    assert load.returncode == 0, out
    assert reseal(made).code == 0
    keyring = made.keyrings / "client1.keys"
    newest = read_keys(keyring)[0].text
    assert is_done(made, newest)
    assert is_replayed(made, first.text), "the message is still that of the token that was sent"
    assert run_main("keyring", "retire", "--after", "0", str(keyring)).out == "client1: retired 2\n"
    wait_reloaded(made)
    told = reseal(made, "--forget")
    assert told.out.splitlines()[-1] == "Forgot 2 keys.", told
    assert [key.text for key in read_keys(keyring)] == [newest]
    verified = run_main("verify", str(history), "--config", config_of(made), "--json")
    assert verified.code == 0, verified
    assert '"refused_absent":0' in verified.out
    assert '"unknown_absent":0' in verified.out


def hand_in(made: Deployment, token: str) -> requests.Response:
    """Hand in a token with the client's leaf."""
    session = made.client_session()
    return session.post(f"{made.url}/api/data", json={"data": token}, timeout=PATIENCE)


def is_replayed(made: Deployment, token: str) -> bool:
    before = made.stored()
    answer = hand_in(made, token)
    assert answer.status_code == 200
    assert made.stored() == before
    return answer.headers.get("Idempotent-Replayed") == "true"
