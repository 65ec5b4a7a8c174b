"""Filters that turn a secret as it is given into the one that is used."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key


def use_secret(given: Any) -> str:
    """Return a secret without newlines at its end.

    ``ansible-vault encrypt_string < file`` keeps that of the file, and nobody means it.
    """
    return "" if given is None else str(given).rstrip("\r\n")


def find_secret_fault(given: Any, name: str) -> str:
    """Say in a sentence why the variable ``name`` holds no secret; "" when it may be one.

    Numbers are refused: YAML reads 0123 as 83, and 1_000 as 1000.
    """
    if isinstance(given, bool | int | float | datetime.date):
        return (
            f"YAML reads {name} as {_kind(given)}, and not as it is written; put quotes around it."
        )
    if isinstance(given, Mapping | list | tuple | set):
        return f"{name} is {_kind(given)}; it has to be text."
    return ""


def find_passphrase(folder: str, given: Any) -> str:
    """Return the passphrase of the CA's key in ``folder``.

    It is the one that is given, without newlines at its end; with them where the key was made by a
    release that took them for a part of it.
    """
    used = use_secret(given)
    if (
        given is None
        or str(given) == used
        or _opens(folder, used)
        or not _opens(folder, str(given))
    ):
        return used
    return str(given)


def _kind(given: Any) -> str:
    if isinstance(given, bool):
        return "a boolean"
    if isinstance(given, datetime.date):
        return "a date"
    if isinstance(given, Mapping):
        return "a dictionary"
    return "a number" if isinstance(given, int | float) else "a list"


def _opens(folder: str, passphrase: str) -> bool:
    try:
        load_pem_private_key(Path(folder, "ca.key").read_bytes(), passphrase.encode())
    except (OSError, ValueError, TypeError):
        return False
    return True


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "find_passphrase": find_passphrase,
            "find_secret_fault": find_secret_fault,
            "use_secret": use_secret,
        }
