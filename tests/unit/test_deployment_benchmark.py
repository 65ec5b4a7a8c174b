"""What the benchmark of deployments makes of a playbook's output."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.deployment import read_options
from benchmarks.deployment_lab import (
    MeasurementFailed,
    list_wheelhouse,
    plain_environment,
    rewrite_inventory,
    run_program,
)
from benchmarks.play_times import (
    Counts,
    Run,
    UnreadableOutput,
    cut_end,
    find_changed,
    pair_ratios,
    rank_tasks,
    read_counts,
    result_lines,
    summarize,
    task_lines,
)

LONG = "r : A task with a name that leaves no room for dashes in a line of seventy-nine columns"
HEADLINE = "TASKS RECAP " + "*" * 68 + "\n"
OUTPUT = f"""
PLAY [One] *********************************************************************
Monday 30 November 2026  15:40:36 +0000 (0:00:01.183)       0:00:01.183 *******{" "}

TASK [r : Say something] *******************************************************
changed: [node1]
Monday 30 November 2026  15:40:52 +0000 (0:00:15.844)       0:00:17.028 *******{" "}
Monday 30 November 2026  15:40:52 +0000 (0:00:00.044)       0:00:17.072 *******{" "}

TASK [r : Say it again] ********************************************************
changed: [node1 -> localhost] => (item=a)
changed: [node1 -> localhost] => (item=b)
Monday 30 November 2026  15:41:52 +0000 (0:01:02.500)       0:01:19.572 *******{" "}

TASK [r : Say it again] ********************************************************
ok: [node1]
Monday 30 November 2026  15:41:54 +0000 (0:00:02.250)       0:01:21.822 *******{" "}

RUNNING HANDLER [r : Do what is notified] **************************************
ok: [node1]

PLAY RECAP *********************************************************************
localhost                  : ok=1    changed=0    unreachable=0    failed=0    skipped=0
node1                      : ok=4    changed=2    unreachable=0    failed=0    skipped=1


TASKS RECAP ********************************************************************
Monday 30 November 2026  15:41:55 +0000 (0:00:00.100)       0:01:21.922 *******{" "}
==============================================================================={" "}
r : Say something ------------------------------------------------------ 15.84s
{LONG} ----- 0.04s
r : Say it again ------------------------------------------------------ 62.50s
r : Say it again ------------------------------------------------------- 2.25s
r : Do what is notified ------------------------------------------------- 0.10s
"""


def run(seconds: float, *tasks: tuple[str, float]) -> Run:
    return Run(seconds, seconds / 2, Counts(3, 2, 0, 1, tasks))


# ansible-core 2.16 comes with a profile_tasks that writes no headline
@pytest.mark.parametrize("headline", [HEADLINE, ""])
def test_output_is_read_as_it_is_written(headline: str) -> None:
    counts = read_counts(OUTPUT.replace(HEADLINE, headline))
    assert (counts.started, counts.ok, counts.changed, counts.skipped) == (5, 5, 2, 1)
    assert counts.tasks == (
        ("r : Say something", 15.84),
        (LONG, 0.04),
        ("r : Say it again", 62.5),
        ("r : Say it again", 2.25),
        ("r : Do what is notified", 0.1),
    )


def test_output_without_a_recap_is_refused() -> None:
    with pytest.raises(UnreadableOutput, match="profile_tasks"):
        read_counts(OUTPUT.partition(HEADLINE)[0])
    with pytest.raises(UnreadableOutput, match="PLAY RECAP"):
        read_counts(OUTPUT.replace(": ok=", ": "))


def test_tasks_that_changed_something_are_named_once() -> None:
    assert find_changed(OUTPUT) == ["r : Say something", "r : Say it again"]


def test_end_of_output_is_what_a_user_would_see() -> None:
    end = cut_end(OUTPUT, 3).splitlines()
    assert [line.split()[0] for line in end] == ["PLAY", "localhost", "node1"]
    assert "0:00:17.028" not in cut_end(OUTPUT)


def test_tasks_of_one_name_are_summed_in_each_run() -> None:
    runs = [
        run(9, ("one", 1.0), ("two", 5.0), ("one", 3.0)),
        run(9, ("one", 2.0), ("two", 1.0), ("one", 4.0)),
        run(9, ("two", 2.0), ("three", 0.5)),
    ]
    ranked = [(task.name, task.times, task.seconds) for task in rank_tasks(runs)]
    assert ranked == [("one", 2, 4.0), ("two", 1, 2.0), ("three", 0, 0.0)]
    assert len(rank_tasks(runs, 2)) == 2


def test_ratios_are_of_medians_and_of_each_pair() -> None:
    ours = [[run(10), run(14)], [run(30)], [run(20)]]
    theirs = [[run(24)], [run(40)], [run(50)]]
    assert pair_ratios(ours, theirs) == [0.5, 0.75, 0.4]
    summary = summarize({"second": {"this": ours, "against": theirs}})["second"]
    assert summary["ratio"] == 0.425
    this = summary["this"]
    assert isinstance(this, dict)
    assert (this["seconds"], this["seconds_spread"], this["ok"]) == (17, [10, 30], 2)
    _, mine, other = result_lines({"second": {"this": ours, "against": theirs}})
    assert mine[:5] == ["second", "this", "4", "17.0", "10.0-30.0"]
    assert mine[-2:] == ["0.42", "0.50 0.75 0.40"]
    assert other[:3] == ["second", "against", "3"]
    assert len({len(line) for line in (mine, other)}) == 1


def test_an_interrupted_comparison_has_what_there_is() -> None:
    measured: dict[str, dict[str, list[list[Run]]]] = {
        "first": {"this": [], "against": [[run(5, ("one", 1.0))]]}
    }
    assert "ratio" not in summarize(measured)["first"]
    assert [line[1] for line in result_lines(measured)] == ["checkout", "against"]
    assert task_lines(measured)[1:] == [["first", "one", "against", "1", "1.00"]]
    demo = {"demo": {"this": [[Run(5.0, 1.0, None)]], "against": []}}
    assert result_lines(demo)[1][3:] == ["5.0", "5.0-5.0", "1.0", *[""] * 6]


def test_inventory_is_that_of_the_lab_with_another_name_and_address() -> None:
    hosts = (Path(__file__).parents[2] / "inventory/lab/hosts.yml").read_text()
    changed = rewrite_inventory(hosts, "bench", "198.18.75.11")
    assert "-F /var/lib/sealrelay-lab/bench/ssh_config" in changed
    assert "ansible_host: 198.18.75.11" in changed
    with pytest.raises(MeasurementFailed):
        rewrite_inventory(hosts.replace("198.18.71.11", "192.0.2.1"), "bench", "198.18.75.11")


def test_wheelhouse_is_filled_by_finished_files_only(tmp_path: Path) -> None:
    assert list_wheelhouse(tmp_path) == set()
    (tmp_path / ".wheelhouse/releases/tmp1").mkdir(parents=True)
    (tmp_path / ".wheelhouse/lock").touch()
    assert list_wheelhouse(tmp_path) == set()
    (tmp_path / ".wheelhouse/releases/1.tar").touch()
    assert list_wheelhouse(tmp_path) == {".wheelhouse/releases/1.tar"}


def test_plays_get_no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSIBLE_FORKS", "PYTHONDONTWRITEBYTECODE", "LC_TIME", "SEALRELAY_CA_PASSPHRASE"):
        monkeypatch.setenv(name, "1")
    environment = plain_environment()
    assert environment["LC_ALL"] == "C.UTF-8"
    assert environment["PATH"] == os.environ["PATH"]
    assert not {"ANSIBLE_FORKS", "PYTHONDONTWRITEBYTECODE", "LC_TIME"} & environment.keys()


def test_a_program_is_stopped_when_its_time_is_of_no_use(tmp_path: Path) -> None:
    ended = run_program([sys.executable, "-c", "print(1)"], tmp_path, what="one")
    assert (ended.code, ended.output) == (0, "1\n")
    assert ended.cpu_seconds > 0
    began = time.monotonic()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    stopped = run_program(command, tmp_path, what="sleeper", is_void=lambda: True)
    assert stopped.code is None
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "third"], "'third' is none of first, second, renew, failover_check"),
        (["--name", "lab"], "belongs to other programs"),
        (["--name", "A b"], "lower-case letters"),
        (["--rounds", "0"], "no number from 1"),
        (["--json", "there/is/no/folder.json"], "cannot be written"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        read_options(arguments)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err
