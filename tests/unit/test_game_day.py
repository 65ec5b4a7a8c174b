"""The report of a game day: each kind of damage is caught, and the page shows what was judged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from game_day.__main__ import main
from game_day.evidence import read_evidence
from game_day.judge import Judgement, judge
from game_day.page import make_page
from game_day.records import Unreadable

from tests.support.game_day import (
    BEGAN,
    ONE,
    OTHER,
    RATE,
    SCENES,
    change_answers,
    change_fault,
    change_verdict,
    delay,
    find_file,
    give_up,
    make_verdict,
    read_lines,
    refuse,
    write_evidence,
    write_json,
    write_lines,
)
from tests.support.node import REPOSITORY

_PROGRAM = REPOSITORY / "roles" / "failover_check" / "files" / "game_day"
_SCENES = {scene.name: scene for scene in SCENES}
_ACTED = int(_SCENES["kill"].before * RATE) + 1
"""The number of the first message that is due from the act on."""


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """A folder of a game in which a server was killed, and all went well."""
    write_evidence(tmp_path, (_SCENES["kill"],))
    return tmp_path


@pytest.fixture
def revocation(tmp_path: Path) -> Path:
    """The same of one in which client2 was shut out."""
    write_evidence(tmp_path, (_SCENES["revoke"],))
    return tmp_path


def judge_first(folder: Path) -> Judgement:
    return judge(read_evidence(folder))[0]


def assert_fails(folder: Path, *reasons: str) -> None:
    """It fails for these reasons, in this order, and for no other."""
    judgement = judge_first(folder)
    assert judgement.outcome == "failed"
    assert len(judgement.reasons) == len(reasons), judgement.reasons
    for said, reason in zip(judgement.reasons, reasons, strict=True):
        assert reason in said


def drop_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    write_lines(path, [line for line in read_lines(path) if keep(line)])


def keep_load(folder: Path, name: str, keep: Callable[[float], bool]) -> None:
    """Leave the messages of a load whose due times (seconds from its beginning) are wanted."""
    path = find_file(folder, name, "history")
    lines = read_lines(path)
    wanted = {one["number"] for one in lines if one["event"] == "sent" and keep(one["due"])}
    history = [line for line in lines if line["event"] == "run" or line["number"] in wanted]
    write_lines(path, history)
    write_json(find_file(folder, name, "verdict"), make_verdict(history))


def test_day_that_went_well_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evidence(tmp_path)
    assert main(["judge", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [scene.name, "skipped" if scene.skipped else "passed"] for scene in SCENES
    ]
    assert lines[-1].endswith("this deployment has one server host")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert [fault["outcome"] for fault in report["faults"]] == ["passed"] * 8 + ["skipped"]


def test_numbers_of_a_fault_are_those_of_the_evidence(day: Path) -> None:
    judgement = judge_first(day)
    assert judgement.messages == judgement.acknowledged == 2000
    assert judgement.wrong == dict.fromkeys(judgement.wrong or {}, 0)
    assert judgement.eject_ms == pytest.approx(30, abs=0.01)
    assert judgement.readmit_ms == pytest.approx(400, abs=0.01)
    assert {phase: sum(counts.values()) for phase, counts in judgement.stored.items()} == {
        "before": 500,
        "during": 1000,
        "after": 500,
    }
    # what was due in the 30 ms before it was out, at most
    assert judgement.stored["during"].get(ONE, 0) <= 3
    assert judgement.stored["after"][ONE] > 100
    during = judgement.spread["during"]
    assert during is not None
    assert during.p50 < 10 < during.p99 <= during.worst < 100


def test_late_message_fails_the_fault(day: Path) -> None:
    change_answers(day, "kill", delay(1000), 700)
    assert_fails(
        day, "1 message was acknowledged later than 1,000 ms after they were due; the latest"
    )
    # How busy the hosts were without it.
    assert re.search(r"Before it, 99 of 100 took at most \d+ ms\.", judge_first(day).reasons[0])
    change_fault(day, "kill", bound={"worst_ms": 1100})
    assert judge_first(day).outcome == "passed"


def test_message_that_was_late_before_the_fault_is_none_of_it(day: Path) -> None:
    change_answers(day, "kill", delay(1000), 100)
    judgement = judge_first(day)
    assert judgement.outcome == "passed"
    assert judgement.worst_ms is not None
    assert judgement.worst_ms < 1000


def test_late_recovery_fails_the_fault(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["all-stop"],))
    judgement = judge_first(tmp_path)
    assert judgement.outcome == "passed"
    assert judgement.worst_ms is not None
    assert judgement.recovery_ms is not None
    assert judgement.recovery_ms < 700 < 4000 < judgement.worst_ms
    change_fault(tmp_path, "all-stop", bound={"recovery_ms": 500})
    assert_fails(tmp_path, "later than 500 ms after the restore or after they were due")


def test_recovery_counts_from_due_after_the_restore(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["all-stop"],))
    change_answers(tmp_path, "all-stop", delay(3001), 1300)
    assert_fails(tmp_path, "number 1300, after 3,0")


def test_recovery_without_a_message_after_the_restore_is_no_evidence(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["kill"],))
    change_fault(tmp_path, "kill", bound={"recovery_ms": 1000})
    keep_load(tmp_path, "kill", lambda due: due < 14.9)
    assert_fails(tmp_path, "No evidence: no message was acknowledged after the restore.")


def test_failed_message_fails_the_fault(day: Path) -> None:
    change_answers(day, "kill", give_up, 700, 701)
    change_answers(day, "kill", refuse, 702)
    assert_fails(
        day,
        "3 of 2,000 messages failed (1 refused, 2 without an acknowledgement), such as number 700: "
        "no coordinator answered in 10 s",
    )


def test_message_without_an_answer_fails_the_fault(day: Path) -> None:
    path = find_file(day, "kill", "history")
    drop_lines(path, lambda line: (line["event"], line.get("number")) != ("answered", 700))
    change_verdict(day, "kill", **make_verdict(read_lines(path)))
    assert_fails(
        day, "1 of 2,000 messages failed (1 without an acknowledgement), such as number 700."
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lost", "lost: acknowledged, and not in the store (number 700)."),
        ("doubled", "stored twice"),
        ("never_sent", "stored and never sent"),
        ("refused_stored", "refused and stored all the same"),
        ("altered", "stored as another's, or under another id"),
    ],
)
def test_store_that_does_not_bear_out_the_history_fails_the_fault(
    day: Path, kind: str, said: str
) -> None:
    change_verdict(day, "kill", **{kind: [700]})
    assert_fails(day, said)
    # also where the load may be cut off, and a client shut out
    change_fault(day, "kill", bound={"cut": True})
    assert_fails(day, said)


def test_verdict_on_another_history_fails_the_fault(day: Path) -> None:
    change_verdict(day, "kill", sent=1000, acknowledged=1000)
    assert_fails(
        day,
        "the verdict is on 1,000 messages sent, the history has 2,000",
        "the verdict is on 1,000 messages acknowledged, the history has 2,000",
    )


def test_load_that_began_after_the_act_is_no_evidence(day: Path) -> None:
    keep_load(day, "kill", lambda due: due >= 4.9)
    assert_fails(
        day,
        "No evidence: 10 messages sent in the second before it was broken, at least 50 are needed",
        "490 messages were due and never sent",
    )


def test_load_that_ended_at_the_act_is_no_evidence(day: Path) -> None:
    keep_load(day, "kill", lambda due: due < 5)
    judgement = judge_first(day)
    assert judgement.outcome == "failed"
    assert any(
        "0 messages sent while it was broken, at least 500" in said for said in judgement.reasons
    )


def test_load_with_a_hole_fails_the_fault(day: Path) -> None:
    keep_load(day, "kill", lambda due: not 7 < due < 8)
    assert_fails(day, "99 messages were due and never sent")


def change_reports(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Do something to the first server, as each worker of the coordinator reports it."""
    path = find_file(folder, "kill", "reports")
    reports = read_lines(path)
    for report in reports:
        change(report["servers"][0])
    write_lines(path, reports)


def test_fault_that_reached_nothing_is_no_evidence(day: Path) -> None:
    change_reports(day, lambda server: server.update(changes=[]))
    judgement = judge_first(day)
    # nobody found so, but it stored nothing
    assert (judgement.outcome, judgement.eject_ms, judgement.readmit_ms) == ("passed", None, None)
    change_answers(day, "kill", lambda answer: answer.update(server=ONE), *range(1100, 1200))
    assert_fails(day, f"No evidence that the fault reached {ONE}")


def test_ejection_of_another_server_is_none(day: Path) -> None:
    change_reports(day, lambda server: server.update(name=f"{ONE}0"))
    assert judge_first(day).eject_ms is None


@pytest.mark.parametrize("out", ["down", "slow"])
@pytest.mark.parametrize("back", ["healthy", "slow"])
def test_ejection_and_readmission_are_found_whatever_the_states(
    day: Path, out: str, back: str
) -> None:
    def say_so(server: dict[str, Any]) -> None:
        ejected, readmitted = server["changes"]
        ejected["state"], readmitted["state"] = out, back
        if out == "slow":  # and then down
            server["changes"].insert(1, {**ejected, "was": "slow", "state": "down"})

    change_reports(day, say_so)
    judgement = judge_first(day)
    assert judgement.eject_ms == pytest.approx(30, abs=0.01)
    assert judgement.readmit_ms == pytest.approx(400, abs=0.01)


def test_ejection_before_the_act_does_not_count(day: Path) -> None:
    def came_and_went(server: dict[str, Any]) -> None:
        early = server["changes"][0]["at"] - 2
        states = (("healthy", "down"), ("down", "healthy"))
        server["changes"][:0] = [
            {"at": early + number, "was": was, "state": state, "reason": ""}
            for number, (was, state) in enumerate(states)
        ]

    change_reports(day, came_and_went)
    assert judge_first(day).eject_ms == pytest.approx(30, abs=0.01)


def test_server_that_is_back_before_the_restore_is_over_is_readmitted_at_once(day: Path) -> None:
    change_fault(
        day,
        "kill",
        restored=json.loads((day / "evidence.json").read_text())["faults"][0]["restored"] + 1,
    )
    assert judge_first(day).readmit_ms == 0


def test_cut_load_may_leave_messages_unanswered(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["reboot"],))
    judgement = judge_first(tmp_path)
    assert (judgement.outcome, judgement.failed) == ("passed", 0)
    assert judgement.excused > 0
    change_fault(tmp_path, "reboot", bound={"worst_ms": 1000})
    reasons = judge_first(tmp_path).reasons
    assert any("without an acknowledgement" in reason for reason in reasons)
    assert any("sent while it was broken" in reason for reason in reasons)


def test_cut_load_excuses_neither_refusals_nor_failures_before_the_act(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["reboot"],))
    change_answers(tmp_path, "reboot", refuse, _ACTED + 3)
    assert_fails(tmp_path, "1 refused")
    write_evidence(tmp_path, (_SCENES["reboot"],))
    change_answers(tmp_path, "reboot", lambda one: one.update(fate="unknown"), 100)
    assert_fails(tmp_path, "1 without an acknowledgement")


def test_client_that_is_shut_out_may_be_refused(revocation: Path) -> None:
    judgement = judge_first(revocation)
    assert (judgement.outcome, judgement.failed) == ("passed", 0)
    assert judgement.excused > 500
    assert judgement.shut_out_ms == pytest.approx(2190, abs=20)


def test_client_that_is_acknowledged_after_it_was_shut_out_fails_the_fault(
    revocation: Path,
) -> None:
    number = _ACTED + 600  # 6 s after the act, and of client2
    change_answers(
        revocation, "revoke", lambda one: one.update(fate="acknowledged", server=OTHER), number
    )
    assert_fails(
        revocation,
        "1 message was acknowledged that client2 sent more than 5,000 ms after the act, "
        "the last 6.000 s after it.",
    )


def test_client_may_be_let_in_again_by_the_restore(revocation: Path) -> None:
    change_answers(
        revocation,
        "revoke",
        lambda one: one.update(fate="acknowledged", server=OTHER),
        *range(_ACTED + 1000, 2001),
    )
    judgement = judge_first(revocation)
    assert judgement.outcome == "passed"
    assert judgement.shut_out_ms == pytest.approx(2190, abs=20)


def test_client_that_tried_until_the_restore_was_let_in_by_it(revocation: Path) -> None:
    def wait(answer: dict[str, Any]) -> None:
        delay(5000)(answer)
        answer.update(fate="acknowledged", server=OTHER)

    change_answers(revocation, "revoke", wait, _ACTED + 600)
    assert judge_first(revocation).outcome == "passed"


def test_client_that_is_never_refused_fails_the_fault(revocation: Path) -> None:
    def acknowledge(answer: dict[str, Any]) -> None:
        answer.update(fate="acknowledged", server=OTHER)

    change_answers(revocation, "revoke", acknowledge, *range(1, 2001))
    assert_fails(revocation, "240 messages were acknowledged", "no message of client2 was refused")


def test_client_that_was_shut_out_before_the_act_fails_the_fault(revocation: Path) -> None:
    change_answers(revocation, "revoke", refuse, *range(1, _ACTED, 2))
    assert_fails(
        revocation, "250 of 2,000 messages failed", "client2 was not let in before it was shut out"
    )


def test_other_clients_keep_their_bounds_while_one_is_shut_out(revocation: Path) -> None:
    change_answers(revocation, "revoke", delay(1500), 700)
    change_answers(revocation, "revoke", refuse, 702)
    assert_fails(revocation, "1 of 2,000 messages failed", "number 700, after 1,50")
    write_evidence(revocation, (_SCENES["revoke"],))
    change_answers(revocation, "revoke", delay(1500), 701)  # of client2
    assert judge_first(revocation).outcome == "passed"


@pytest.mark.parametrize("kind", ["history", "verdict", "reports"])
@pytest.mark.parametrize("named", [True, False])
def test_missing_file_fails_the_fault(day: Path, kind: str, named: bool) -> None:
    if named:
        find_file(day, "kill", kind).unlink()
    else:
        change_fault(day, "kill", **{kind: None})
    assert any(
        said.startswith("No evidence") and "missing" in said for said in judge_first(day).reasons
    )


def test_missing_times_fail_the_fault(day: Path) -> None:
    change_fault(day, "kill", restored=None)
    assert_fails(day, "not written down when it was broken and when it was restored")
    change_fault(day, "kill", restored=BEGAN)
    assert_fails(day, "restored before it was broken")


def test_error_fails_the_fault(day: Path) -> None:
    change_fault(day, "kill", error="systemctl start failed.")
    assert_fails(day, "Something went wrong: systemctl start failed.")


def test_game_in_which_all_was_skipped_fails(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["partition"],))
    assert main(["judge", str(tmp_path)]) == 1


def test_only_one_fault_is_told_and_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evidence(tmp_path, (_SCENES["kill"], _SCENES["revoke"]))
    change_verdict(tmp_path, "revoke", doubled=[7, 8])
    assert main(["judge", "--only", "kill", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("kill         passed ")
    assert main(["judge", "--only", "revoke", str(tmp_path)]) == 1
    line, reason = capsys.readouterr().out.splitlines()
    assert re.match("revoke +FAILED .* 0 failed, 0 lost, 2 doubled, worst ", line)
    assert reason.strip() == "2 messages were stored twice (number 7, 8)."
    assert main(["judge", str(tmp_path)]) == 1
    assert main(["judge", "--only", "freeze", str(tmp_path)]) == 2


def test_only_is_about_the_last_fault_of_a_name(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["kill"], _SCENES["kill"]))
    (tmp_path / "01-kill.verdict.json").unlink()
    assert main(["judge", "--only", "kill", str(tmp_path)]) == 0
    assert main(["judge", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("kind", "garbage", "said"),
    [
        ("history", "{", "line 3: no JSON"),
        ("history", "[]", "line 3: no JSON object"),
        ("history", '{"event": "sent"}', "line 3: 'number' is no whole number"),
        ("history", '{"event": "run", "began": 1}', "line 3: a history has one run"),
        ("history", '{"event": "answered", "number": 7}', "line 3: message 7 is not sent"),
        ("reports", "Bad Request", "line 3: no JSON"),
        ("reports", '{"servers": {}}', "line 3: 'servers' is no list"),
        (
            "reports",
            '{"servers": [{"name": "node1-5001"}]}',
            "line 3: 'servers', number 1: 'changes' is no list",
        ),
        (
            "reports",
            '{"servers": [{"name": "x", "changes": [{"was": "up", "state": "down"}]}]}',
            "line 3: 'servers', number 1: 'changes', number 1: 'up' is no state of a server",
        ),
    ],
)
def test_garbage_is_named_by_file_and_line(
    day: Path, kind: str, garbage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = find_file(day, "kill", kind)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], garbage, *lines[2:], ""]))
    assert main(["judge", str(day)]) == 2
    assert f"{path}: {said}" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_named_by_file_and_line(day: Path) -> None:
    path = find_file(day, "kill", "history")
    path.write_bytes(path.read_bytes().replace(b'"number": 2', b'"number": \xff', 1))
    with pytest.raises(Unreadable, match=r"history\.jsonl: line 4: not of UTF-8"):
        read_evidence(day)


def test_verdict_that_is_none_is_named(day: Path) -> None:
    path = find_file(day, "kill", "verdict")
    path.write_text('{"sent": 2000, "acknowledged": 2000}')
    with pytest.raises(Unreadable, match=r"verdict\.json: 'lost' is no list"):
        read_evidence(day)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bound": {"worst": 1000}}, "'worst' is not known here"),
        ({"bound": {"worst_ms": "1000"}}, "'worst_ms' is no number"),
        ({"bound": {"shut_out": {"client": "client2"}}}, "'within_ms' is no number"),
        ({"bound": None}, "'bound': no JSON object"),
        ({"server": "node1-5009"}, "'node1-5009' is no server of this deployment"),
        ({"history": "../kill.history.jsonl"}, "'history' is no file of this folder"),
    ],
)
def test_evidence_that_is_not_of_its_form_is_refused(
    day: Path, fields: dict[str, Any], said: str
) -> None:
    change_fault(day, "kill", **fields)
    with pytest.raises(Unreadable, match=re.escape(said)):
        read_evidence(day)


def test_folder_without_evidence_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", str(tmp_path)]) == 2
    assert f"{tmp_path}/evidence.json: there is no such file" in capsys.readouterr().err


def test_last_line_that_was_cut_off_is_left_out(day: Path) -> None:
    for kind in ("history", "reports"):
        path = find_file(day, "kill", kind)
        path.write_bytes(path.read_bytes() + b'{"event": "\xc3')
    assert judge_first(day).outcome == "passed"


def test_judging_needs_no_more_than_the_standard_library(day: Path) -> None:
    command: list[str | Path] = [sys.executable, "-I", "-S", _PROGRAM]
    run = subprocess.run(
        [*command, "judge", day], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("kill ")
    run = subprocess.run([*command, "page", day], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "requirements/control.in" in run.stderr


class _Page(HTMLParser):
    """What a page refers to, and the ids that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def write_page(folder: Path) -> str:
    assert main(["page", str(folder)]) == 0
    return (folder / "report.html").read_text()


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    write_evidence(tmp_path)
    text = write_page(tmp_path)
    page = _Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert {"svg", "path", "style", "table"} <= page.tags
    assert [one for one in page.references if not one.startswith("#")] == []
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(page.ids) == len(set(page.ids))
    for target in [*page.references, *re.findall(r"url\((#[^)]*)\)", text)]:
        assert target[1:] in page.ids, target


def test_page_is_the_same_for_the_same_evidence(day: Path) -> None:
    assert write_page(day) == write_page(day)


def test_page_of_2000_messages_is_small_and_has_no_fixed_colour(day: Path) -> None:
    text = write_page(day)
    picture = text[text.index('<svg viewBox="0 0 720') :]
    picture = picture[: picture.index("</svg>")]
    assert len(picture) < 45_000
    assert re.findall("#[0-9a-f]{6}", picture) == []
    assert "var(--server-0)" in picture
    assert "font-family" not in picture


def test_page_escapes_the_evidence(tmp_path: Path) -> None:
    write_evidence(tmp_path, (_SCENES["kill"], _SCENES["partition"]))
    evil = '<script>alert("1")</script>\'&$x_1^2$'
    change_fault(tmp_path, "kill", title=evil, target=evil, act=evil, restore=evil, error=evil)
    change_fault(tmp_path, "partition", skipped=evil)
    path = tmp_path / "evidence.json"
    evidence = json.loads(path.read_text())
    evidence["deployment"] |= {"release": evil, "trust_domain": evil, "clients": [evil]}
    evidence["deployment"]["servers"][1]["name"] = evil
    write_json(path, evidence)
    change_answers(tmp_path, "kill", lambda answer: answer.update(server=evil), *range(900, 950))
    change_answers(tmp_path, "kill", lambda one: one.update(fate="unknown", detail=evil), 700)
    reports = find_file(tmp_path, "kill", "reports")
    lines = read_lines(reports)
    lines[1]["servers"][0]["changes"][0]["reason"] += evil
    write_lines(reports, lines)
    page = _Page(write_page(tmp_path))
    assert "script" not in page.tags
    assert "".join(page.text).count(evil) > 10


def test_page_tells_of_a_fault_that_failed(day: Path) -> None:
    change_verdict(day, "kill", lost=[700])
    change_answers(day, "kill", give_up, 710, 711)
    change_verdict(day, "kill", lost=[700])
    text = " ".join("".join(_Page(write_page(day)).text).split())
    assert (
        "One thing was broken while 2,000 messages were on their way: one fault went beyond what "
        "is allowed, 1 message was lost and none was stored twice." in text
    )
    assert "2 of 2,000 messages failed; the slowest took 86 ms." in text
    assert "1 message was lost: acknowledged, and not in the store (number 700)." in text
    assert "node1-5001 is down: Connection refused\N{MULTIPLICATION SIGN} 2" in text


def test_page_tells_of_a_day_that_went_well(tmp_path: Path) -> None:
    write_evidence(tmp_path)
    text = " ".join("".join(_Page(write_page(tmp_path)).text).split())
    assert (
        "Eight things were broken while 12,871 messages were on their way: none was lost, none was "
        "stored twice, and each fault stayed within its bound." in text
    )
    assert "Not tried: this deployment has one server host" in text
    assert "The load was cut off, with 3 messages under way" in text
    assert "client2 was last let in 2.2 s after it" in text


def test_page_is_made_of_a_fault_without_files(day: Path) -> None:
    change_fault(
        day, "kill", acted=None, restored=None, ended=None, history=None, verdict=None, reports=None
    )
    change_fault(day, "kill", error="node1 could not be reached.")
    text = "".join(_Page(write_page(day)).text)
    assert "Something went wrong: node1 could not be reached." in text
    assert "Not known: nothing was measured." in text


def test_page_is_what_the_evidence_says_now(day: Path) -> None:
    evidence = read_evidence(day)
    assert make_page(evidence, judge(evidence)) == write_page(day)
