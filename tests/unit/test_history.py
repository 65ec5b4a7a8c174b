"""Histories of loads: written, cut off, read back, and judged by what is stored."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrelay.errors import InputFileError
from sealrelay.history import (
    Answered,
    Fate,
    History,
    HistoryWriter,
    Run,
    Sent,
    read_history,
    read_text,
    write_text,
)
from sealrelay.load import Plan
from sealrelay.verify import Found, Verdict, compare

RUN = Run("0123456789abcdef", 1_800_000_000.25)


def sent(number: int, client: str = "client1") -> Sent:
    return Sent(number, client, f"{number:064x}", 1_800_000_000, number / 100, number / 100 + 0.001)


def answered(number: int, fate: Fate = Fate.ACKNOWLEDGED) -> Answered:
    return Answered(number, number / 100 + 0.005, fate, "server1", 1)


def found(number: int, client: str = "client1", message_id: str = "") -> Found:
    return Found(number, client, message_id or f"{number:064x}")


def make_history(**fates: list[int]) -> History:
    """Messages by what became of them; ``open``: no second line."""
    history = History(RUN)
    for name, numbers in fates.items():
        for number in numbers:
            history.sent[number] = sent(number)
            if name != "open":
                history.answered[number] = answered(number, Fate(name))
    return history


# The file


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with HistoryWriter(path, RUN) as writer:
        writer.write(sent(1))
        writer.write(sent(2, "client2"))
        writer.write(answered(2, Fate.REFUSED))
    history = read_history(path)
    assert history.run == RUN
    assert history.sent == {1: sent(1), 2: sent(2, "client2")}
    assert (history.fate(1), history.fate(2)) == (Fate.UNKNOWN, Fate.REFUSED)
    assert path.stat().st_mode & 0o777 == 0o600


def test_history_is_there_before_the_writer_ends(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "history", RUN) as writer:
        writer.write(sent(1))
        assert read_history(tmp_path / "history").sent == {1: sent(1)}


def test_history_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("evidence")
    with pytest.raises(FileExistsError):
        HistoryWriter(tmp_path / "history", RUN)
    assert (tmp_path / "history").read_text() == "evidence"


def test_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with HistoryWriter(path, RUN) as writer:
        writer.write(sent(1))
        whole = len(path.read_bytes())
        writer.write(answered(1))
    data = path.read_bytes()
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        assert read_history(path).fate(1) is Fate.UNKNOWN


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no history in it"),
        ('{"event":"run","run":"', "there is no history in it"),
        ("nonsense\n", "line 1: not of a history"),
        ("\xff\n", "line 1: not of a history"),
        ('{"event":"gone"}\n', "line 1: not of a history"),
        ("SENT1\n", "line 1: not of a history: the first line is no run"),
        ("RUN\nRUN\n", "line 2: not of a history: a second run begins"),
        ("RUN\nSENT1\nSENT1\n", "line 3: not of a history: message 1 is sent a second time"),
        ("RUN\nANSWERED1\n", "line 2: not of a history: message 1 is answered and was not sent"),
        (
            "RUN\nSENT1\nANSWERED1\nANSWERED1\n",
            "line 4: not of a history: message 1 is answered a second time",
        ),
    ],
)
def test_file_that_is_no_history_is_refused(tmp_path: Path, text: str, told: str) -> None:
    sample = tmp_path / "sample"
    with HistoryWriter(sample, RUN) as writer:
        writer.write(sent(1))
        writer.write(answered(1))
    for name, line in zip(
        ("RUN", "SENT1", "ANSWERED1"), sample.read_text().splitlines(), strict=True
    ):
        text = text.replace(f"{name}\n", f"{line}\n")
    path = tmp_path / "history"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputFileError, match=f"^{path}: {told}"):
        read_history(path)


def test_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        read_history(tmp_path / "none")


@given(st.integers(1, 10**10 - 1), st.integers(0, 2000))
def test_number_is_found_again_in_a_text_of_any_size(number: int, size: int) -> None:
    text = write_text(RUN.run, number, size)
    assert len(text) >= size
    assert read_text(text) == (RUN.run, number)


@pytest.mark.parametrize("text", [b"", b"hello", b"sealrelay load 0123456789abcdef 07", b"\xff"])
def test_other_texts_are_of_no_load(text: bytes) -> None:
    assert read_text(text) is None


# The verdict: damage of each kind is seeded, and must be seen


def test_what_is_as_it_should_be_is_no_fault() -> None:
    history = make_history(acknowledged=[1, 2, 3], refused=[4], unknown=[5, 6], open=[7, 8])
    stored = [found(number) for number in (1, 2, 3, 6, 8)]
    verdict = compare(history, stored)
    assert verdict.faults == {}
    assert verdict == Verdict(
        sent=8,
        acknowledged=3,
        stored_once=3,
        unknown_stored=2,
        unknown_absent=2,
        refused_absent=1,
    )


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        ([1], {"lost": [2]}),
        ([], {"lost": [1, 2]}),
        ([1, 2, 2], {"stored twice": [2]}),
        ([1, 2, 9], {"stored, never sent": [9]}),
        ([1, 2, 9, 9], {"stored, never sent": [9], "stored twice": [9]}),
        ([1, 2, 3], {"refused, stored all the same": [3]}),
        ([1, 2, 4, 4], {"stored twice": [4]}),
    ],
)
def test_damage_is_seen(stored: list[int], fault: dict[str, list[int]]) -> None:
    history = make_history(acknowledged=[1, 2], refused=[3], unknown=[4])
    assert compare(history, [found(number) for number in stored]).faults == fault


def test_message_that_a_build_without_ids_stores_twice_is_seen() -> None:
    """Each copy has an id of its own there, and still both say that they are number 1."""
    history = make_history(acknowledged=[1])
    verdict = compare(history, [found(1), found(1, message_id="ff" * 32)])
    assert verdict.doubled == verdict.altered == [1]


@pytest.mark.parametrize("stored", [found(1, "client2"), found(1, message_id="ab" * 32)])
def test_message_that_is_anothers_now_is_seen(stored: Found) -> None:
    assert compare(make_history(acknowledged=[1]), [stored]).altered == [1]


@given(
    st.dictionaries(st.integers(1, 30), st.sampled_from(["none", *Fate])),
    st.lists(st.integers(1, 30)),
)
def test_every_message_is_counted_and_each_fault_is_one(
    fates: dict[int, object], stored: list[int]
) -> None:
    history = History(RUN)
    for number, fate in fates.items():
        history.sent[number] = sent(number)
        if isinstance(fate, Fate):
            history.answered[number] = answered(number, fate)
    verdict = compare(history, map(found, stored))
    acknowledged = [number for number, fate in fates.items() if fate is Fate.ACKNOWLEDGED]
    assert verdict.sent == len(fates)
    assert verdict.acknowledged == len(acknowledged)
    assert verdict.lost == sorted(set(acknowledged) - set(stored))
    doubled_acknowledged = [number for number in acknowledged if stored.count(number) > 1]
    assert verdict.stored_once == len(acknowledged) - len(verdict.lost) - len(doubled_acknowledged)
    assert verdict.doubled == sorted({n for n in stored if stored.count(n) > 1})
    assert verdict.never_sent == sorted(set(stored) - fates.keys())
    told = [*verdict.lost, *verdict.refused_stored]
    others = verdict.unknown_stored + verdict.unknown_absent + verdict.refused_absent
    assert verdict.stored_once + len(doubled_acknowledged) + len(told) + others == len(fates)


# When messages are due


def test_messages_of_a_fixed_rate_are_evenly_due() -> None:
    plan = Plan(50.0, 50.0, 2.0, (1, 1), 1)
    assert plan.messages == 100
    assert [plan.due(number) for number in (1, 2, 100)] == [0.0, 0.02, 1.98]


@pytest.mark.parametrize(("rate", "to_rate"), [(10.0, 90.0), (90.0, 10.0)])
def test_rate_changes_evenly(rate: float, to_rate: float) -> None:
    plan = Plan(rate, to_rate, 10.0, (1, 1), 1)
    assert plan.messages == 500
    dues = [plan.due(number) for number in range(1, 501)]
    assert dues[0] == 0.0
    assert all(earlier < later for earlier, later in itertools.pairwise(dues))
    assert dues[-1] < 10.0
    first, last = sum(due < 1.0 for due in dues), sum(due >= 9.0 for due in dues)
    assert first == pytest.approx(rate + (to_rate - rate) / 20, abs=1.5)
    assert last == pytest.approx(to_rate - (to_rate - rate) / 20, abs=1.5)
