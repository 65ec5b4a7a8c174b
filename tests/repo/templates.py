"""Tasks and Jinja templates of playbooks and roles, as the tests read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2
from jinja2 import nodes

_EXPRESSIONS = ("when", "that", "until", "failed_when", "changed_when")
"""Keys whose values are expressions without braces."""


class _Anything(dict[str, Any]):
    """Filters and tests: that they exist is ansible-lint's to say."""

    def get(self, _name: str, _default: Any = None) -> Any:
        return str

    def __contains__(self, _name: object) -> bool:
        return True


def parse_template(text: str) -> nodes.Template:
    """The syntax tree of a template, whatever its filters and tests."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 - not rendered
    environment.filters = environment.tests = _Anything()
    return environment.parse(text)


def list_tasks(node: object) -> Iterator[dict[str, Any]]:
    """Each mapping in a file of YAML: plays, blocks, tasks, and their arguments."""
    if isinstance(node, list):
        for item in node:
            yield from list_tasks(item)
    elif isinstance(node, dict):
        yield node
        for value in node.values():
            yield from list_tasks(value)


def list_templates(node: object, key: str = "") -> Iterator[str]:
    """The templates in a file of YAML, with braces where it leaves them out."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from list_templates(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from list_templates(value, key)
    elif isinstance(node, str):
        if key in _EXPRESSIONS:
            yield f"{{{{ {node} }}}}"
        elif "{{" in node or "{%" in node:
            yield node
