"""``python game_day judge FOLDER`` and ``python game_day page FOLDER``; see ``--help``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a folder, whose modules are those of a package all the same
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from game_day.evidence import Evidence, read_evidence
from game_day.judge import PHASES, Judgement, has_passed, judge
from game_day.records import Unreadable
from game_day.wording import say_count, say_milliseconds

_UNUSABLE = 2
"""Exit code, as argparse has it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _make_parser().parse_args(arguments)
    folder: Path = options.folder
    try:
        evidence = read_evidence(folder)
        if options.command == "judge":
            return _judge(evidence, folder, options.only)
        return _make_page(evidence, folder)
    except Unreadable as error:
        print(f"game_day: {error}", file=sys.stderr)
    except OSError as error:
        print(f"game_day: {error.filename}: {error.strerror}", file=sys.stderr)
    return _UNUSABLE


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="game_day",
        description="Judge a game day by the evidence in a folder, and make a page that shows it.",
        epilog="Exit codes: 0 what was tried has passed; 1 it has not, or nothing was tried; "
        "2 the evidence can't be read.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    judging = commands.add_parser(
        "judge",
        help="say of each fault whether it stayed within its bound; write report.json",
        description="Say of each fault whether it stayed within its bound; write report.json.",
        epilog="'stored' has the messages that each server stored before/during/after the fault.",
    )
    judging.add_argument(
        "--only", metavar="NAME", help="tell, and exit, by the last fault of this name alone"
    )
    paging = commands.add_parser(
        "page",
        help="judge, and write report.html: one file with pictures (needs Jinja2 and matplotlib)",
        description="Judge the evidence anew, and write report.html, which needs no other file.",
    )
    for command in (judging, paging):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="has evidence.json")
    return parser


def _judge(evidence: Evidence, folder: Path, only: str | None) -> int:
    judgements = judge(evidence)
    chosen = judgements
    if only is not None:
        chosen = [judgement for judgement in judgements if judgement.name == only][-1:]
        if not chosen:
            raise Unreadable(f"{folder / 'evidence.json'}: there is no fault {only!r}")
    report = {
        "passed": has_passed(judgements),
        "began": evidence.began,
        "ended": evidence.ended,
        "rate": evidence.rate,
        "deployment": asdict(evidence.deployment),
        "faults": [asdict(judgement) for judgement in judgements],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    for judgement in chosen:
        print(describe(judgement))
    return 0 if has_passed(chosen) else 1


def describe(judgement: Judgement) -> str:
    """A line, and another one for each reason why a fault failed."""
    outcome = "FAILED" if judgement.outcome == "failed" else judgement.outcome
    start = f"{judgement.name:<12} {outcome:<8}"
    if judgement.outcome == "skipped":
        return f"{start} {judgement.reasons[0]}"
    wrong = judgement.wrong
    facts = [
        say_count(judgement.messages, "message"),
        f"{judgement.failed:,} failed",
        *(
            f"{wrong[kind]:,} {kind}" if wrong else f"{kind} unknown"
            for kind in ("lost", "doubled")
        ),
        f"worst {say_milliseconds(judgement.worst_ms)} ({judgement.bound})",
        _say_time("ejected", judgement.eject_ms),
        _say_time("re-admitted", judgement.readmit_ms),
    ]
    names = sorted({name for counts in judgement.stored.values() for name in counts})
    for name in names:
        counts = "/".join(f"{judgement.stored[phase].get(name, 0):,}" for phase in PHASES)
        facts.append(f"{name} stored {counts}")
    return "\n    ".join([f"{start} {', '.join(facts)}", *judgement.reasons])


def _say_time(what: str, milliseconds: float | None) -> str:
    return (
        f"not {what}" if milliseconds is None else f"{what} after {say_milliseconds(milliseconds)}"
    )


def _make_page(evidence: Evidence, folder: Path) -> int:
    try:
        from game_day.page import make_page  # what judges needs neither Jinja2 nor matplotlib
    except ImportError as error:
        print(f"game_day: {error}: install what requirements/control.in names", file=sys.stderr)
        return _UNUSABLE
    path = folder / "report.html"
    path.write_text(make_page(evidence, judge(evidence)), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
