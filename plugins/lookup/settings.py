"""What an inventory sets of the roles' variables, evaluated in the place where the roles will.

A ``default()`` gives way to any variable that is set, and takes the place of one whose expression
can't be evaluated as well: of one that is made of facts which were not gathered, or has a spelling
mistake. So preflight asks for all of them first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleUndefinedVariable
from ansible.plugins.lookup import LookupBase

_ROLES = Path(__file__).parents[2] / "roles"
# Theirs are made of what is known later, or of others of these alone.
_LATER = frozenset({"failover_check", "preflight", "uninstall"})
_SHARED: Mapping[str, Any] = {
    "sealrelay_crl_expired": "accept",
    "sealrelay_trust_domain": "sealrelay.internal",
}


@lru_cache
def read_defaults() -> dict[str, Any]:
    """Return what the roles have for variables that are not set."""
    defaults: dict[str, Any] = {**_SHARED}
    for path in sorted(_ROLES.glob("*/defaults/main.yml")):
        if path.parts[-3] not in _LATER:
            defaults |= yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return defaults


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
            found.append({"name": name, "value": value, "fault": fault})
        return found


def _describe_error(name: str, error: Exception) -> str:
    # What a filter complains of may be the secret.
    if "pass" in name and not isinstance(error, AnsibleUndefinedVariable):
        return type(error).__name__
    # Before 2.19 Ansible says it twice.
    return ". ".join(dict.fromkeys(str(error).strip().split("\n")[0].rstrip(".").split(". ")))
