"""Pictures of the results: ``python -m benchmarks.plot FOLDER`` draws those of a latest.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter

# Okabe and Ito's colours, which the colour-blind can tell apart; markers tell them apart in print.
_STYLES = {
    "sealrelay": ("#0072B2", "o"),
    "haproxy": ("#D55E00", "s"),
    "nginx": ("#009E73", "^"),
    "caddy": ("#CC79A7", "D"),
    "naive": ("#666666", "x"),
}
_BOUND_MS = 250
_LASTING = ("stop", "kill")
"""Faults after which the server stays away."""


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what there are results for into ``folder``; returns the files."""
    # Without this salt (and the date, below), the same numbers would make another file each time.
    # Text stays text: a fifth of the size, and searchable.
    plt.rcParams.update({"svg.hashsalt": "sealrelay", "svg.fonttype": "none", "font.size": 10})
    figures = {}
    if results.get("throughput"):
        figures["throughput"] = _draw_throughput(results["throughput"])
    if results.get("timelines"):
        figures["faults"] = _draw_faults(results["timelines"], results["faults"])
    files = []
    for name, figure in figures.items():
        file = folder / f"{name}.svg"
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
        files.append(file)
    return files


def _draw_throughput(throughput: dict[str, Any]) -> Any:
    connections = [int(number) for number in throughput]
    peers = [peer for peer in _STYLES if peer in throughput[str(connections[0])]]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for panel, field, label in (
        (panels[0], "rps", "messages acknowledged per second"),
        (panels[1], "p99_ms", "p99 latency, ms"),
    ):
        for peer in peers:
            color, marker = _STYLES[peer]
            rows = [throughput[str(number)][peer] for number in connections]
            low, high = zip(*(row[f"{field}_spread"] for row in rows), strict=True)
            values = [row[field] for row in rows]
            panel.fill_between(connections, low, high, color=color, alpha=0.15, linewidth=0)
            panel.plot(connections, values, color=color, marker=marker, label=peer)
        panel.set_xscale("log", base=2)
        panel.set_xticks(connections, [str(number) for number in connections])
        panel.set_xlabel("client connections, each with one message under way")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panels[0].legend(frameon=False)
    figure.suptitle("Two committing servers behind each relay: median and range of the rounds")
    return figure


def _draw_faults(timelines: dict[str, Any], faults: dict[str, Any]) -> Any:
    names = list(timelines["faults"])
    peers = [peer for peer in _STYLES if peer in timelines["faults"][names[0]]]
    step, begin, end = (timelines[key] for key in ("step", "fault_begins", "fault_ends"))
    figure, panels = plt.subplots(
        len(names),
        len(peers),
        figsize=(2.5 * len(peers) + 0.7, 1.7 * len(names) + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, fault in enumerate(names):
        for column, peer in enumerate(peers):
            panel = panels[row][column]
            worst = timelines["faults"][fault][peer]
            until = len(worst) * step if fault in _LASTING else end
            panel.axvspan(begin, until, color="#eeeeee", linewidth=0)
            panel.axhline(_BOUND_MS, color="#bbbbbb", linewidth=0.8, linestyle="--")
            moments = [number * step for number in range(len(worst))]
            panel.fill_between(moments, 1, worst, step="post", color=_STYLES[peer][0], linewidth=0)
            panel.set_yscale("log")
            panel.set_ylim(1, 30_000)
            panel.set_yticks([1, 10, 100, 1000, 10_000], ["1", "10", "100", "1 s", "10 s"])
            panel.minorticks_off()
            panel.tick_params(labelsize=8)
            fate = faults[fault][peer]
            panel.text(
                0.98,
                0.95,
                f"worst {fate['worst_ms']:.0f} ms\nfailed {fate['failed']}",
                transform=panel.transAxes,
                ha="right",
                va="top",
                fontsize=8,
                color="#b00000" if fate["failed"] else "#222222",
            )
            if row == 0:
                panel.set_title(peer, fontsize=11)
            if column == 0:
                panel.set_ylabel(fault, fontsize=11)
    figure.supxlabel("seconds; grey: one of the two servers has the fault", fontsize=10)
    figure.supylabel(f"slowest answer of each {step * 1000:.0f} ms, in ms", fontsize=10)
    return figure


def main() -> None:
    folder = Path(sys.argv[1])
    for file in draw(json.loads((folder / "latest.json").read_text()), folder):
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
