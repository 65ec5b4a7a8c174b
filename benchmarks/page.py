"""The tables of docs/benchmarks.md, made from the results that are committed beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.report import fault_lines, format_markdown, throughput_lines

_REPOSITORY = Path(__file__).parents[1]
RESULTS = _REPOSITORY / "benchmarks" / "results"
PAGE = _REPOSITORY / "docs" / "benchmarks.md"


def render_page(text: str, results: dict[str, Any]) -> str:
    """The page with its tables made from ``results``."""
    parts = {
        "machine": _machine(results["machine"]),
        "throughput": format_markdown(throughput_lines(results["throughput"])),
        "faults": format_markdown(fault_lines(results["faults"])),
    }
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda match, part=part: f"{match[1]}{part}\n{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def update_page() -> None:
    """Write the page anew from ``benchmarks/results/latest.json``."""
    results = json.loads((RESULTS / "latest.json").read_text())
    PAGE.write_text(render_page(PAGE.read_text(), results))


def main() -> None:
    """``python -m benchmarks.page``: after the page's own text was changed, say."""
    update_page()


def _machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{peer} {version}" for peer, version in facts["peers"].items())
    return (
        f"Measured {facts['measured_at'][:10]} at commit `{facts['commit']}`: "
        f"{facts['cores']} cores ({facts['processor']}), {facts['memory_gib']:.0f} GiB, "
        f"{facts['system']}, Python {facts['python']}, OpenSSL {facts['openssl']}; other programs "
        f"kept {facts['load_average_before']:g} processors busy before. Versions: {versions}."
    )


if __name__ == "__main__":
    main()
