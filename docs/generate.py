"""Writes docs/variables.md from the roles' argument specs. Run it as bin/docs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
TARGET = REPOSITORY / "docs" / "variables.md"

_HEAD = """\
# Variables of the roles

Made by `bin/docs` from `roles/*/meta/argument_specs.yml`; change them there. Set a variable in an
inventory's `group_vars` or `host_vars`, or with `-e`; what is not set has the default shown here.

`sealrelay_trust_domain` (default `sealrelay.internal`) is the one variable of the whole deployment:
every identity is `spiffe://<trust domain>/<role>/<name>`.
"""


def describe(value: Any) -> str:
    """A description or default as one table cell."""
    text = " ".join(value) if isinstance(value, list) and value and " " in str(value[0]) else value
    return str(text).replace("|", "\\|").replace("\n", " ").strip()


def make_variables_page() -> str:
    """The whole page as Markdown."""
    page = [_HEAD]
    for specs_file in sorted((REPOSITORY / "roles").glob("*/meta/argument_specs.yml")):
        entry_points = yaml.safe_load(specs_file.read_text())["argument_specs"]
        options: dict[str, dict[str, Any]] = {}
        for entry_point in entry_points.values():
            options |= entry_point.get("options") or {}
        page.append(f"## {specs_file.parts[-3]}\n\n{entry_points['main']['short_description']}.\n")
        if not options:
            continue
        page.append("| variable | type | default | |\n|---|---|---|---|")
        for name, option in options.items():
            default = (
                "required" if option.get("required") else f"`{describe(option.get('default', ''))}`"
            )
            cells = (
                f"`{name}`",
                option["type"],
                default.replace("``", ""),
                describe(option["description"]),
            )
            page.append(f"| {' | '.join(cells)} |")
        page.append("")
    return "\n".join(page).rstrip() + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(TARGET.read_text() != make_variables_page())
    TARGET.write_text(make_variables_page())
