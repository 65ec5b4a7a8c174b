"""The evidence of a game day that never was, by seed, and each kind of damage done to it.

``python -m tests.support.game_day FOLDER`` writes one to look at.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE = 100
BEGAN = 1_795_430_000.0
SERVERS = [
    {
        "name": f"node1-{port}",
        "host": "node1",
        "unit": f"sealrelay-server@{port}",
        "url": f"https://127.0.0.1:{port}",
    }
    for port in (5001, 5002)
]
ONE, OTHER = (str(server["name"]) for server in SERVERS)
CLIENTS = ("client1", "client2")

Latency = Callable[[float, random.Random], float]
"""By when a message is due, in seconds from the act: the milliseconds it takes."""


@dataclass
class Scene:
    """One fault of the game, in seconds from its act."""

    name: str
    title: str
    target: str
    act: str
    restore: str
    bound: dict[str, Any]
    hits: bool = True
    """Whether it hits the first server, which is out from ``ejected`` until ``readmitted``."""
    before: float = 5.0
    lasts: float = 10.0
    after: float = 5.0
    ejected: float = 0.03
    readmitted: float = 0.4
    """From the restore."""
    found: tuple[str, str] = ("down", "Connection refused")
    """State and reason with which it is ejected."""
    latency: Latency = field(default=lambda due, dice: calm(dice))
    cut: float | None = None
    """When the load ends, with what is under way."""
    shut_out: float | None = None
    """When client2 is shut out."""
    skipped: str | None = None
    error: str | None = None


def calm(dice: random.Random) -> float:
    """Milliseconds of a message of an ordinary day."""
    return 2.5 + dice.lognormvariate(0.6, 0.5)


def bump(start: float, end: float, worst: float) -> Latency:
    """Calm but for what is due in between, which waits until the end, or a part of it."""

    def latency(due: float, dice: random.Random) -> float:
        if start <= due < end:
            return calm(dice) + dice.uniform(0.6, 1.0) * min(worst, (end - due) * 1000)
        return calm(dice)

    return latency


def frozen(due: float, dice: random.Random) -> float:
    """What lay with the frozen server is hedged, from time to time again by a slow probe."""
    return calm(dice) + (dice.uniform(55, 140) if -0.01 <= due < 0.12 else 0.0)


def slow(due: float, dice: random.Random) -> float:
    """A store that is slow for all."""
    return calm(dice) * (dice.uniform(8, 22) if 0 <= due < 8 else 1.0)


_UNIT = "sealrelay-server@5001"
SCENES = (
    Scene(
        "kill",
        "A server's process is killed",
        f"{_UNIT} on node1",
        f"systemctl kill --signal=KILL {_UNIT}",
        f"systemctl start {_UNIT}",
        {"worst_ms": 1000},
        latency=bump(-0.01, 0.12, 90),
    ),
    Scene(
        "freeze",
        "A server freezes",
        f"{_UNIT} on node1",
        f"systemctl kill --signal=STOP {_UNIT}",
        f"systemctl kill --signal=CONT {_UNIT}",
        {"worst_ms": 1000},
        ejected=0.071,
        found=("slow", "overtaken by node1-5002"),
        latency=frozen,
    ),
    Scene(
        "blackhole",
        "The network swallows what goes to a server",
        f"{_UNIT} on node1",
        "nft add rule inet game_day out tcp dport 5001 drop",
        "nft delete table inet game_day",
        {"worst_ms": 1000},
        ejected=0.064,
        readmitted=0.9,
        found=("slow", "overtaken by node1-5002"),
        latency=bump(-0.02, 0.2, 130),
    ),
    Scene(
        "slow-disk",
        "The disk under the store is slow",
        "/var/lib/sealrelay on node1",
        "fio --name=game_day --rw=randwrite --fsync=1 --size=1G --runtime=8 --time_based",
        "rm -f /var/lib/sealrelay/game_day.*",
        {"worst_ms": 2000},
        hits=False,
        lasts=8.0,
        latency=slow,
    ),
    Scene(
        "all-stop",
        "Every server stops at once",
        "all servers on node1",
        f"systemctl stop {_UNIT} sealrelay-server@5002",
        f"systemctl start {_UNIT} sealrelay-server@5002",
        {"recovery_ms": 3000},
        lasts=4.0,
        readmitted=0.5,
        latency=bump(0.0, 4.6, 4600),
    ),
    Scene(
        "coordinator",
        "The coordinator is restarted",
        "sealrelay-coordinator on node1",
        "systemctl restart sealrelay-coordinator",
        "systemctl is-active sealrelay-coordinator",
        {"worst_ms": 2000},
        hits=False,
        lasts=1.4,
        latency=bump(0.0, 1.4, 1400),
    ),
    Scene(
        "revoke",
        "A client's certificate is revoked",
        "client2",
        "ansible-playbook playbooks/revoke.yml -e name=client2",
        "ansible-playbook playbooks/add_client.yml -e name=client2 -e certificate_readmit=true",
        {"worst_ms": 1000, "shut_out": {"client": "client2", "within_ms": 5000}},
        hits=False,
        shut_out=2.2,
    ),
    Scene(
        "reboot",
        "The servers' host is reset",
        "node1",
        "echo b > /proc/sysrq-trigger",
        "(the host comes back by itself)",
        {"cut": True},
        hits=False,
        cut=0.3,
    ),
    Scene(
        "partition",
        "The servers' hosts lose each other",
        "node1 and node2",
        "",
        "",
        {"worst_ms": 1000},
        skipped="this deployment has one server host",
    ),
)


def write_evidence(folder: Path, scenes: tuple[Scene, ...] = SCENES, seed: int = 5) -> None:
    """Write the folder of a game that went well."""
    dice = random.Random(seed)  # noqa: S311 - not a secret
    faults: list[dict[str, Any]] = []
    acted = BEGAN
    for number, scene in enumerate(scenes, 1):
        stem = f"{number:02}-{scene.name}"
        acted += scene.before + 3
        fault: dict[str, Any] = {
            "name": scene.name,
            "title": scene.title,
            "target": scene.target,
            "server": ONE if scene.hits else None,
            "act": scene.act,
            "restore": scene.restore,
            "bound": scene.bound,
            "skipped": scene.skipped,
            "error": scene.error,
        }
        faults.append(fault)
        if scene.skipped is not None:
            continue
        fault |= {
            "acted": acted,
            "restoring": acted + scene.lasts - 0.2,
            "restored": acted + scene.lasts,
            "ended": acted + scene.lasts + scene.after,
            "history": f"{stem}.history.jsonl",
            "verdict": f"{stem}.verdict.json",
            "reports": f"{stem}.reports.jsonl",
        }
        history = make_history(scene, acted, dice)
        write_lines(folder / fault["history"], history)
        (folder / fault["verdict"]).write_text(json.dumps(make_verdict(history)) + "\n")
        write_lines(folder / fault["reports"], make_reports(scene, acted))
        acted += scene.lasts + scene.after
    evidence = {
        "deployment": {
            "trust_domain": "sealrelay.internal",
            "release": "0.1.0-3f2a9c1",
            "store": "sqlite",
            "servers": SERVERS,
            "coordinators": [{"name": "node1", "host": "node1", "unit": "sealrelay-coordinator"}],
            "clients": CLIENTS,
        },
        "rate": RATE,
        "began": BEGAN,
        "ended": acted + 4,
        "faults": faults,
    }
    write_json(folder / "evidence.json", evidence)


def make_history(scene: Scene, acted: float, dice: random.Random) -> list[dict[str, Any]]:
    """The lines of a load around a fault."""
    start = -scene.before
    began = acted + start
    lines: list[dict[str, Any]] = [{"event": "run", "run": "00c0ffee00c0ffee", "began": began}]
    length = scene.before + scene.lasts + scene.after
    for number in range(1, int(length * RATE) + 1):
        due = (number - 1) / RATE
        at = due + start
        if scene.cut is not None and at >= scene.cut:
            break
        client = CLIENTS[number % 2]
        lines.append(
            {
                "event": "sent",
                "number": number,
                "client": client,
                "message_id": f"{dice.getrandbits(256):064x}",
                "sealed_at": int(began + due),
                "due": round(due, 6),
                "sent": round(due + 0.0004, 6),
            }
        )
        answered = due + scene.latency(at, dice) / 1000
        answer = {"event": "answered", "number": number, "answered": round(answered, 6)}
        out = scene.hits and scene.ejected <= at < scene.lasts + scene.readmitted
        server = OTHER if out else dice.choice((ONE, OTHER))
        answer |= {"fate": "acknowledged", "server": server, "tries": 1, "detail": ""}
        if scene.cut is not None and answered + start >= scene.cut - 0.02:
            continue
        if scene.shut_out is not None and client == "client2" and at >= scene.shut_out:
            detail = "the coordinator refused this client's certificate: certificate revoked"
            answer |= {"fate": "refused", "server": "", "tries": 0, "detail": detail}
        lines.append(answer)
    return lines


def make_verdict(history: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``sealrelay verify --json`` says where all went well."""
    fates = [line["fate"] for line in history if line["event"] == "answered"]
    sent = sum(line["event"] == "sent" for line in history)
    acknowledged, refused = fates.count("acknowledged"), fates.count("refused")
    unknown = sent - acknowledged - refused
    return {
        "sent": sent,
        "acknowledged": acknowledged,
        "stored_once": acknowledged,
        "unknown_stored": unknown // 2,
        "unknown_absent": unknown - unknown // 2,
        "refused_absent": refused,
        **{kind: [] for kind in ("lost", "doubled", "never_sent", "refused_stored", "altered")},
    }


def make_reports(scene: Scene, acted: float) -> list[dict[str, Any]]:
    """What two workers of the coordinator record of the servers."""
    state, reason = scene.found
    changes = [
        (scene.ejected, "healthy", state, reason),
        *([(scene.ejected + 0.5, "slow", "down", "timed out")] if state == "slow" else []),
        (scene.lasts + scene.readmitted, "down", "healthy", ""),
    ]
    reports = []
    for late in (0.0, 0.02):
        seen = [
            {"at": acted + at + late, "was": was, "state": state, "reason": reason}
            for at, was, state, reason in changes
        ]
        servers = [
            {"name": server["name"], "url": server["url"], "state": "healthy", "changes": those}
            for server, those in zip(SERVERS, [seen if scene.hits else [], []], strict=True)
        ]
        reports.append({"name": "node1", "started": BEGAN, "workers": 1, "servers": servers})
    return reports


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path: Path, value: object) -> None:
    """Write JSON for people."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def find_file(folder: Path, name: str, kind: str) -> Path:
    """The ``history``, ``verdict`` or ``reports`` of a fault."""
    return next(folder.glob(f"*-{name}.{kind}.*"))


def change_fault(folder: Path, name: str, **fields: Any) -> None:
    """Put fields into a fault of the evidence."""
    path = folder / "evidence.json"
    evidence = json.loads(path.read_text())
    for fault in evidence["faults"]:
        if fault["name"] == name:
            fault.update(fields)
    write_json(path, evidence)


def change_verdict(folder: Path, name: str, **fields: Any) -> None:
    """Put fields into a fault's verdict."""
    path = find_file(folder, name, "verdict")
    write_json(path, json.loads(path.read_text()) | fields)


def change_answers(
    folder: Path, name: str, change: Callable[[dict[str, Any]], object], *numbers: int
) -> None:
    """Change how some messages of a fault were answered; the verdict is made to fit."""
    path = find_file(folder, name, "history")
    history = read_lines(path)
    for line in history:
        if line["event"] == "answered" and line["number"] in numbers:
            change(line)
    write_lines(path, history)
    change_verdict(folder, name, **make_verdict(history))


def delay(milliseconds: float) -> Callable[[dict[str, Any]], None]:
    """An answer comes later."""

    def change(answer: dict[str, Any]) -> None:
        answer["answered"] = round(answer["answered"] + milliseconds / 1000, 6)

    return change


def give_up(answer: dict[str, Any]) -> None:
    """A message's client hears nothing for ten seconds."""
    delay(10_000)(answer)
    answer.update(fate="unknown", server="", tries=3, detail="no coordinator answered in 10 s")


def refuse(answer: dict[str, Any]) -> None:
    """A message's client is refused."""
    answer.update(fate="refused", server="", detail="the token is older than 24 h")


def write_bad_day(folder: Path) -> None:
    """A game of which one fault went badly."""
    write_evidence(folder)
    change_answers(folder, "blackhole", give_up, 508, 511, 514)
    change_answers(folder, "blackhole", delay(1180), *range(515, 530))
    change_verdict(folder, "blackhole", lost=[517])


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_bad_day(FOLDER)
