"""How long deployments take: playbooks on fresh lab nodes, and two checkouts compared.

In each round a node is made, deployed to and taken away:

  first           site.yml on a fresh node
  second          site.yml again; it must change nothing
  renew           playbooks/renew.yml with nothing due; it must change nothing
  failover_check  playbooks/failover_check.yml

With --against the checkouts take turns, each on a fresh node, and every other round goes the other
way round: compare their ratios, since absolute times are those of the machine. Both run with the
Ansible of this checkout, and each with its own roles, playbooks, ansible.cfg and group_vars.

A first deployment that had to fill the checkout's .wheelhouse (wheels from a package index, the
release's archive) does not count: it is stopped, and made anew on another node.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.deployment_lab import (
    REPOSITORY,
    Interrupted,
    Lab,
    MeasurementFailed,
    Site,
    describe_commit,
    held_signals,
    list_wheelhouse,
    open_against,
    plain_environment,
    raised_signals,
    run_program,
    say,
)
from benchmarks.machine import describe_machine
from benchmarks.play_times import (
    SIDES,
    Run,
    UnreadableOutput,
    cut_end,
    find_changed,
    read_counts,
    result_lines,
    summarize,
    task_lines,
)
from benchmarks.report import format_markdown, format_text

PLAYBOOKS = {
    "first": "site.yml",
    "second": "site.yml",
    "renew": "playbooks/renew.yml",
    "failover_check": "playbooks/failover_check.yml",
}
"""By measurement, in the order in which they are made."""

_CHANGES_NOTHING = ("second", "renew")
_TAKEN = ("lab", "test", "test2", "postgresql")
"""Labs of other programs, which must not be taken down."""
_VOID = ".wheelhouse had to be filled, so this does not count; once more"
_COMPILED = ("ansible", "ansible_collections/ansible", "ansible_collections/community/crypto")
"""Below site-packages: nearly all that the playbooks import."""


@dataclass(frozen=True)
class Checkout:
    """One side of the comparison; the folder holds site.yml, ansible.cfg, roles and playbooks."""

    side: str
    folder: Path
    commit: str
    """With ``+`` when files differ from it."""


Runs = dict[str, list[Run]]
"""The runs of one round of one checkout, by measurement."""
Measured = dict[str, dict[str, list[list[Run]]]]
"""By measurement and side, the runs of each round."""


def find_ansible() -> tuple[Path, str]:
    """The ansible-playbook beside this Python, and the version of its ansible-core."""
    beside = Path(sys.executable).with_name("ansible-playbook")
    try:
        core = version("ansible-core")
    except PackageNotFoundError:
        core = ""
    if not core or not beside.exists():
        raise SystemExit(
            "This Python has no Ansible beside it. Make the environment with `bin/bootstrap --with "
            "test`, and run this with .venv/bin/python."
        )
    return beside, core


def play(site: Site, name: str, is_void: Callable[[], bool] = lambda: False) -> Run | None:
    """Run a measurement's playbook; None when it was stopped as void. Raises MeasurementFailed."""
    environment = plain_environment() | {
        "ANSIBLE_CONFIG": str(site.checkout / "ansible.cfg"),
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(site.sockets),
        "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
        "PROFILE_TASKS_SORT_ORDER": "none",
        "PAGER": "cat",
    }
    playbook = PLAYBOOKS[name]
    ansible, _ = find_ansible()
    # It ends with this program, however that ends.
    command = ["setpriv", "--pdeathsig", "KILL", str(ansible)]
    command += ["-i", str(site.inventory), playbook]
    done = run_program(command, site.checkout, what=name, environment=environment, is_void=is_void)
    if done.code is None:
        return None
    if done.code:
        raise MeasurementFailed(
            f"{cut_end(done.output)}\n\n{name}: {playbook} failed with exit code {done.code}"
        )
    try:
        counts = read_counts(done.output)
    except UnreadableOutput as error:
        raise MeasurementFailed(f"{cut_end(done.output)}\n\n{name}: {playbook}: {error}") from None
    if name in _CHANGES_NOTHING and counts.changed:
        raise MeasurementFailed(
            f"{cut_end(done.output)}\n\n{name}: {playbook} changed {counts.changed}, and there was "
            f"nothing to change: {'; '.join(find_changed(done.output))}"
        )
    return Run(done.seconds, done.cpu_seconds, counts)


def measure_checkout(
    lab: Lab,
    checkout: Checkout,
    runs: Runs,
    *,
    names: Sequence[str],
    repeats: int,
    may_be_void: bool = True,
) -> None:
    """One round of one checkout; adds each run as it ends. Raises MeasurementFailed."""
    say(f"  {checkout.side}: a fresh node")
    with lab.fresh_node(checkout.folder) as site:
        before = list_wheelhouse(checkout.folder)

        def has_grown() -> bool:
            return may_be_void and not list_wheelhouse(checkout.folder) <= before

        first = play(site, "first", has_grown)
        if first and not has_grown():
            _report(checkout, "first" if "first" in names else "first, not counted", first)
            if "first" in names:
                runs["first"] = [first]
            for name in [name for name in PLAYBOOKS if name in names and name != "first"]:
                for _ in range(repeats if name == "second" else 1):
                    run = play(site, name)
                    assert run is not None
                    runs.setdefault(name, []).append(run)
                    _report(checkout, name, run)
            return
    say(f"  {checkout.side}: {_VOID}")
    measure_checkout(lab, checkout, runs, names=names, repeats=repeats, may_be_void=False)


def _report(checkout: Checkout, name: str, run: Run) -> None:
    text = f"  {checkout.side}: {name}: {run.seconds:.1f} s"
    if run.counts:
        counts = run.counts
        text += f", {counts.started} tasks started: ok {counts.ok}, changed {counts.changed}"
        text += f", skipped {counts.skipped}"
    say(text)


def measure_demo(checkout: Checkout, runs: Runs, *, may_be_void: bool = True) -> None:
    """Add a run of a checkout's bin/demo on a fresh lab ``lab``. Raises MeasurementFailed."""
    folder = checkout.folder
    before = list_wheelhouse(folder)

    def has_grown() -> bool:
        return may_be_void and not list_wheelhouse(folder) <= before

    with ExitStack() as stack:
        stack.callback(take_demo_down, folder)
        done = run_program([folder / "bin" / "demo"], folder, what="demo", is_void=has_grown)
    if done.code is None or has_grown():
        say(f"  {checkout.side}: {_VOID}")
        measure_demo(checkout, runs, may_be_void=False)
        return
    if done.code:
        raise MeasurementFailed(
            f"{cut_end(done.output)}\n\ndemo: bin/demo failed with exit code {done.code}"
        )
    runs["demo"] = [Run(done.seconds, done.cpu_seconds, None)]
    _report(checkout, "demo", runs["demo"][0])


def take_demo_down(folder: Path) -> None:
    """Remove the lab of bin/demo; no signal keeps this from its end."""
    with held_signals():
        subprocess.run(
            [folder / "bin" / "demo", "--down"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )


def run_rounds(
    measured: Measured,
    checkouts: Sequence[Checkout],
    rounds: int,
    measure: Callable[[Checkout, Runs], None],
) -> None:
    """Add the runs of all rounds to ``measured``; who goes first alternates."""
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        for checkout in checkouts if number % 2 else reversed(checkouts):
            runs: Runs = {}
            try:
                measure(checkout, runs)
            finally:
                for name, found in runs.items():
                    sides = measured.setdefault(name, {side: [] for side in SIDES})
                    sides[checkout.side].append(found)


def prepare_ansible() -> None:
    """Compile what playbooks import, which else the first of them would do."""
    say("compiling what is not yet compiled of Ansible: up to a minute")
    packages = Path(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "compileall", "-q"]
    run_program([*command, *(packages / name for name in _COMPILED)], REPOSITORY, what="compileall")


def prepare_demo(lab: Lab, checkouts: Sequence[Checkout]) -> None:
    """Make what a first bin/demo makes: the base system and each checkout's environment."""
    Lab("lab").check_free()
    say("the base system of nodes, and .venv of each checkout: not counted")
    with lab.fresh_node(REPOSITORY):
        pass
    for checkout in checkouts:
        done = run_program(
            [checkout.folder / "bin" / "bootstrap"], checkout.folder, what="bin/bootstrap"
        )
        if done.code:
            raise MeasurementFailed(f"{cut_end(done.output)}\n\nbin/bootstrap failed")


def describe_results(
    measured: Measured, checkouts: Sequence[Checkout], core: str, *, complete: bool
) -> dict[str, object]:
    """What --json writes. It names no folder of this machine."""
    machine = describe_machine([], REPOSITORY)
    for of_relays in ("peers", "store_filesystem", "commit"):
        del machine[of_relays]
    return {
        "machine": machine,
        "ansible_core": core,
        "commits": {checkout.side: checkout.commit for checkout in checkouts},
        "complete": complete,
        "measurements": summarize(measured),
    }


def write_report(measured: Measured, *, markdown: bool) -> None:
    """Print the tables."""
    write = format_markdown if markdown else format_text
    tables = [result_lines(measured), task_lines(measured)]
    sys.stdout.write("\n\n".join(write(lines) for lines in tables if len(lines) > 1) + "\n")


def _read_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PLAYBOOKS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(PLAYBOOKS)}")
    return names


def _read_count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,2}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to 999")
    return int(text)


def _read_lab(text: str) -> str:
    if text in _TAKEN:
        raise argparse.ArgumentTypeError(f"the lab '{text}' belongs to other programs")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", text):
        raise argparse.ArgumentTypeError("lower-case letters, digits and '-', please")
    return text


def _read_json(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' cannot be written: is its folder there?")
    return path


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Raises SystemExit for what it does not know."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deployment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Progress goes to stderr, results to stdout. Needs root or sudo, for bin/lab. "
        "The lab is taken\ndown at any end, also at Ctrl-C; what is complete by then is printed.",
    )
    add = parser.add_argument
    add("--rounds", type=_read_count, default=3, metavar="N", help="(default: %(default)s)")
    add(
        "--only",
        type=_read_names,
        default=list(PLAYBOOKS),
        metavar="NAME,...",
        help="these measurements; without `first`, that is made and not counted",
    )
    add(
        *("--second",),
        type=_read_count,
        default=1,
        metavar="N",
        help="repeats of `second` in each round (default: %(default)s)",
    )
    add("--against", metavar="DIR|COMMIT", help="compare with another checkout, or with a commit")
    add(
        *("--demo",),
        action="store_true",
        help="time bin/demo instead of playbooks, from nothing to its end, on the lab `lab`; "
        "inventory/lab/pki of each checkout is kept, so its CA is made in the first round at most",
    )
    add(
        *("--name",),
        type=_read_lab,
        default="bench",
        metavar="LAB",
        help="the lab's name, see bin/lab (default: %(default)s)",
    )
    add("--json", type=_read_json, metavar="FILE", help="write the results there too")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure as the command line says; the exit code is 1 when something failed."""
    options = read_options()
    _, core = find_ansible()
    lab = Lab(options.name)
    measured: Measured = {}
    problem = ""
    with raised_signals(), ExitStack() as stack:
        checkouts = [Checkout(SIDES[0], REPOSITORY, describe_commit(REPOSITORY))]
        try:
            if options.against:
                folder = stack.enter_context(open_against(options.against))
                checkouts.append(Checkout(SIDES[1], folder, describe_commit(folder)))
            lab.check_free()
            prepare_ansible()
            measure: Callable[[Checkout, Runs], None] = measure_demo
            if options.demo:
                prepare_demo(lab, checkouts)
            else:
                measure = partial(measure_checkout, lab, names=options.only, repeats=options.second)
            run_rounds(measured, checkouts, options.rounds, measure)
        except MeasurementFailed as error:
            problem = str(error)
        except Interrupted as signalled:
            problem = f"ended by {signalled}; what it had started is ended too"
    if measured:
        write_report(measured, markdown=options.markdown)
        if options.json:
            results = describe_results(measured, checkouts, core, complete=not problem)
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    if problem:
        raise SystemExit(problem)


if __name__ == "__main__":
    main()
