"""What an inventory sets of the roles' variables, evaluated in the place where the roles will.

A ``default()`` gives way to any variable that is set, and takes the place of one whose expression
can't be evaluated as well: of one that is made of facts which were not gathered, or has a spelling
mistake. And ``int`` makes a 0 of what is no number. So preflight asks for all of them first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleUndefinedVariable
from ansible.module_utils.common.parameters import DEFAULT_TYPE_VALIDATORS
from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars

_ROLES = Path(__file__).parents[2] / "roles"
# Theirs are made of what is known later, or of others of these alone.
_LATER = frozenset({"failover_check", "preflight", "uninstall"})
_SHARED: Mapping[str, Any] = {
    "sealrelay_crl_expired": "accept",
    "sealrelay_trust_domain": "sealrelay.internal",
}
_YES_OR_NO: Mapping[str, Any] = {"type": "bool"}
_ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "ca_replace": _YES_OR_NO,
    "confirm": _YES_OR_NO,
    "revoke_replaced": _YES_OR_NO,
    "withdraw": _YES_OR_NO,
}
"""What operators say to a playbook with -e. A mistyped one must not be taken for a no."""
_SAID = frozenset({*_ANSWERS, "reason"})
_LIKE: Mapping[str, str] = {
    "reason": "ca_revoke_reason",
    "sealrelay_crl_expired": "server_crl_expired",
}
"""Others that are handed on to an option of a role."""
_WORDS = {
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "list": "a list; as text, its parts have commas between them",
}
_TRUTHS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0", "1.0", "0.0"})

_DAYS = (1, 36_500)
_PEERS = (1, 50_000)
_SECONDS = (0.001, 86_400)
RANGES: Mapping[str, tuple[float, float]] = {
    "ca_crl_validity_days": _DAYS,
    "ca_validity_days": _DAYS,
    "certificate_renew_at": (0, 1),
    "certificate_validity_days": _DAYS,
    "client_deadline": _SECONDS,
    "coordinator_attempt_timeout": _SECONDS,
    "coordinator_backlog": (1, 65_535),
    "coordinator_deadline": _SECONDS,
    "coordinator_hedge_ceiling": _SECONDS,
    "coordinator_hedge_floor": _SECONDS,
    "coordinator_lanes": (1, 64),
    "coordinator_max_batch": (1, 1_000),
    "coordinator_max_body_bytes": (1_024, 64 << 20),
    "coordinator_max_connections": _PEERS,
    "coordinator_max_connections_per_peer": _PEERS,
    "coordinator_max_handshakes_per_peer": (1, 2_000),
    "coordinator_max_waiting": (1, 100_000),
    "coordinator_max_waiting_bytes": (1_024, 1 << 40),
    "coordinator_probe_interval": _SECONDS,
    "coordinator_retry_share": (0, 1),
    "coordinator_workers": (1, 64),
    "payload_keys_retire_after": (0, 1 << 32),
    "runtime_keep_releases": (1, 1_000),
    "server_max_body_bytes": (1_024, 64 << 20),
    "server_max_connections": _PEERS,
    "server_max_connections_per_peer": _PEERS,
    "server_max_handshakes_per_peer": (1, 2_000),
    "server_retention": (1, 1 << 32),
    "server_token_ttl": (1, 1 << 32),
    "server_workers": (1, 64),
}
"""Of numbers, both ends included; each is a part of what the app takes."""


@lru_cache
def read_defaults() -> dict[str, Any]:
    """Return what the roles have for variables that are not set."""
    defaults: dict[str, Any] = {**_SHARED}
    for path in sorted(_ROLES.glob("*/defaults/main.yml")):
        if path.parts[-3] not in _LATER:
            defaults |= yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return defaults


@lru_cache
def read_options() -> dict[str, Mapping[str, Any]]:
    """Return what the specifications say of variables that can't be any text."""
    options = {}
    for path in _ROLES.glob("*/meta/argument_specs.yml"):
        specs = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["argument_specs"]
        for spec in specs.values():
            for name, option in spec.get("options", {}).items():
                if option["type"] in _WORDS or "choices" in option:
                    options[name] = option
    return options


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible comes without types
    """``query('settings', 'server_bind', 'server_ports')``; without names, all that are set.

    What operators say with -e is judged with them.
    """

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
        for name in sorted((set(terms or defaults) - _SAID) & given.keys()):
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
                wanted = find_wanted(name, value)
                if wanted:
                    host = given["inventory_hostname"]
                    fault = f"{name} of {host} is {value!r}, and has to be {wanted}."
            found.append({"name": name, "value": value, "fault": fault})
        return found + judge_answers(load_extra_vars(self._loader), terms)


def judge_answers(said: Mapping[str, Any], names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return name, value and fault of what was said with -e; without names, of all that was.

    Hosts may have variables of these names for something else.
    """
    found = []
    for name in sorted(_SAID & said.keys() & set(names or said)):
        wanted = find_wanted(name, said[name])
        fault = f"{name} is {said[name]!r}, and has to be {wanted}." if wanted else ""
        found.append({"name": name, "value": said[name], "fault": fault})
    return found


def find_wanted(name: str, value: Any) -> str:
    """Say what a variable has to be; "" when it is. Text will do where it can be read as that."""
    option = _ANSWERS.get(name) or read_options().get(_LIKE.get(name, name))
    if option is None:
        return ""
    if "choices" in option:
        return "" if value in option["choices"] else f"one of {', '.join(option['choices'])}"
    kind = option["type"]
    try:
        checked = DEFAULT_TYPE_VALIDATORS[kind](value)
        if kind == "list":
            for element in checked:
                DEFAULT_TYPE_VALIDATORS[option.get("elements", "str")](element)
    except (TypeError, ValueError):
        return _WORDS[kind]
    # Before 2.19 the filter `bool` takes other abbreviations than these for no.
    if kind == "bool" and str(value).lower() not in _TRUTHS:
        return _WORDS[kind]
    lowest, highest = RANGES.get(name, (-math.inf, math.inf))
    if name in RANGES and not checked >= lowest:  # nor is "nan"
        return f"{lowest} or more"
    return f"{highest} or less" if name in RANGES and checked > highest else ""


def _describe_error(name: str, error: Exception) -> str:
    # What a filter complains of may be the secret.
    if "pass" in name and not isinstance(error, AnsibleUndefinedVariable):
        return type(error).__name__
    # Before 2.19 Ansible says it twice.
    return ". ".join(dict.fromkeys(str(error).strip().split("\n")[0].rstrip(".").split(". ")))
