"""What an inventory sets of the roles' variables, evaluated in the place where the roles will.

A ``default()`` gives way to any variable that is set, and takes the place of one whose expression
can't be evaluated as well: of one that is made of facts which were not gathered, or has a spelling
mistake. And ``int`` makes a 0 of what is no number. So preflight asks for all of them first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleUndefinedVariable
from ansible.module_utils.common.parameters import DEFAULT_TYPE_VALIDATORS
from ansible.plugins.lookup import LookupBase

_ROLES = Path(__file__).parents[2] / "roles"
# Theirs are made of what is known later, or of others of these alone.
_LATER = frozenset({"failover_check", "preflight", "uninstall"})
_SHARED: Mapping[str, Any] = {
    "sealrelay_crl_expired": "accept",
    "sealrelay_trust_domain": "sealrelay.internal",
}
_WORDS = {
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "list": "a list; as text, its parts have commas between them",
}
_TRUTHS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0", "1.0", "0.0"})


@lru_cache
def read_defaults() -> dict[str, Any]:
    """Return what the roles have for variables that are not set."""
    defaults: dict[str, Any] = {**_SHARED}
    for path in sorted(_ROLES.glob("*/defaults/main.yml")):
        if path.parts[-3] not in _LATER:
            defaults |= yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return defaults


@lru_cache
def read_types() -> dict[str, tuple[str, str]]:
    """Return type and elements of the variables that are no text, as the specifications say."""
    types = {}
    for path in _ROLES.glob("*/meta/argument_specs.yml"):
        specs = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["argument_specs"]
        for spec in specs.values():
            for name, option in spec.get("options", {}).items():
                if option["type"] in _WORDS:
                    types[name] = option["type"], option.get("elements", "str")
    return types


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible comes without types
    """``query('settings', 'server_bind', 'server_ports')``; without names, all that are set."""

    def run(
        self,
        terms: Sequence[str],
        variables: Mapping[str, Any] | None = None,
        **_more: Any,
    ) -> list[dict[str, Any]]:
        """Return name, value and fault of each; the fault is a sentence, or empty."""
        given = variables or {}
        defaults = read_defaults()
        templar = self._templar.copy_with_new_env(available_variables={**defaults, **given})
        found = []
        for name in sorted(set(terms or defaults) & given.keys()):
            value, fault = None, ""
            try:
                value = templar.template(given[name])
            except Exception as error:  # noqa: BLE001 - an expression may raise anything
                fault = (
                    f"{name} of {given['inventory_hostname']} has no value: "
                    f"{_describe_error(name, error)}; set it to one, or to an expression of "
                    f"variables and facts that exist."
                )
            else:
                fault = _find_type_fault(name, value, given["inventory_hostname"])
            found.append({"name": name, "value": value, "fault": fault})
        return found


def _find_type_fault(name: str, value: Any, host: str) -> str:
    """Say of which type a variable has to be; text will do where it can be read as one."""
    if name not in read_types():
        return ""
    kind, elements = read_types()[name]
    try:
        checked = DEFAULT_TYPE_VALIDATORS[kind](value)
        if kind == "list":
            for element in checked:
                DEFAULT_TYPE_VALIDATORS[elements](element)
    except (TypeError, ValueError):
        return f"{name} of {host} is {value!r}, and has to be {_WORDS[kind]}."
    # Before 2.19 the filter `bool` takes other abbreviations than these for no.
    if kind == "bool" and str(value).lower() not in _TRUTHS:
        return f"{name} of {host} is {value!r}, and has to be {_WORDS[kind]}."
    return ""


def _describe_error(name: str, error: Exception) -> str:
    # What a filter complains of may be the secret.
    if "pass" in name and not isinstance(error, AnsibleUndefinedVariable):
        return type(error).__name__
    # Before 2.19 Ansible says it twice.
    return ". ".join(dict.fromkeys(str(error).strip().split("\n")[0].rstrip(".").split(". ")))
