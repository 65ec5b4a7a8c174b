"""The repository's own files, as the tests read them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir() if path.is_dir())


def tracked_files(*patterns: str) -> list[Path]:
    """The files that git knows, or would if they were added."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = (REPOSITORY / name for name in listing.split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def read_yaml(path: Path) -> Any:
    """The one document of a YAML file; None when the file is not there."""
    return yaml.safe_load(path.read_text()) if path.exists() else None


def role_defaults(role: str) -> dict[str, Any]:
    return read_yaml(REPOSITORY / "roles" / role / "defaults" / "main.yml") or {}


def role_specs(role: str) -> dict[str, dict[str, Any]]:
    """Entry point → its specification."""
    specs = read_yaml(REPOSITORY / "roles" / role / "meta" / "argument_specs.yml")
    entry_points: dict[str, dict[str, Any]] = (specs or {}).get("argument_specs", {})
    return entry_points


def load_module(path: str) -> ModuleType:
    """A plugin, a module of Ansible or a program, by its path in the repository."""
    name = f"loaded_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def run_playbook(
    folder: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in a folder, with the settings that are shipped; however it ends."""
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), *arguments],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
