#!/usr/bin/python
"""Ansible module: pack one release of the app, with every wheel it needs, into one archive."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release_bundle
short_description: Pack a release of the app and all of its wheels into one archive
description:
  - Runs on the control node. Downloads the wheels of the locked requirements for the Python and the
    architecture of the target, builds the app's own wheel, and packs both into one archive.
  - Does nothing when the archive is there already. Runs at the same time wait for each other.
options:
  app_dir:
    description: Folder with the app's sources, its pyproject.toml and requirements.txt.
    type: path
    required: true
  wheelhouse:
    description: Folder that keeps wheels and archives.
    type: path
    required: true
  python_version:
    description: The target's Python, such as 3.11.
    type: str
    required: true
  machine:
    description: The target's architecture.
    type: str
    choices: [x86_64, aarch64]
    required: true
author:
  - the sealrelay authors
"""

RETURN = r"""
release:
  description: Name of the release, from the app's version and everything that goes into it.
  type: str
  returned: always
archive:
  description: The archive. In check mode it may not exist.
  type: str
  returned: always
"""

import fcntl
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# Ubuntu 22.04 has glibc 2.35, and no supported system an older one. pip doesn't infer from one
# manylinux tag that the older ones fit too, so it is told each.
OLDEST_GLIBC, NEWEST_GLIBC = 5, 35
# Part of the release's name: change it when the same sources are to be installed in another way.
LAYOUT = "2"
KEEP = 6


def list_sources(app_dir: Path) -> list[Path]:
    """Return the files that make up the app, in a stable order."""
    files = [
        app_dir / name
        for name in ("pyproject.toml", "requirements.in", "requirements.txt", "README.md")
    ]
    files += (app_dir / "src").rglob("*")
    made = re.compile(r"__pycache__|\.egg-info|\.pyc$")
    return sorted(
        path for path in files if path.is_file() and not made.search(str(path.relative_to(app_dir)))
    )


def digest(*parts: bytes) -> str:
    """Hash parts so that moving a byte from one to the next changes the result."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def name_release(app_dir: Path, target: str) -> str:
    """Return ``<version>-<hash>`` over the sources, the lock and the target."""
    version = re.search(r'(?m)^version *= *"([^"]+)"', (app_dir / "pyproject.toml").read_text())
    parts = [LAYOUT.encode(), target.encode()]
    for path in list_sources(app_dir):
        parts += [str(path.relative_to(app_dir)).encode(), path.read_bytes()]
    return f"{version[1] if version else '0'}-{digest(*parts)[:10]}"


def list_platforms(machine: str) -> list[str]:
    """Return pip's names of every platform whose wheels the oldest supported system can load."""
    older = ["manylinux2014"] + (["manylinux2010", "manylinux1"] if machine == "x86_64" else [])
    newer = [f"manylinux_2_{minor}" for minor in range(OLDEST_GLIBC, NEWEST_GLIBC + 1)]
    return [f"{tag}_{machine}" for tag in newer + older]


def run_pip(module: AnsibleModule, what: str, *arguments: str) -> None:
    """Run pip on the control node; fail the task with the end of its output."""
    environment = {
        "SOURCE_DATE_EPOCH": "315532800",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    command = [sys.executable, "-m", "pip", *arguments]
    status, out, errors = module.run_command(command, environ_update=environment)
    if status:
        lines = [
            line for line in (out + errors).splitlines() if line.startswith("ERROR")
        ] or errors.splitlines()[-5:]
        module.fail_json(
            msg=f"pip could not {what} on the control node: {' '.join(lines)}",
            cmd=command,
            rc=status,
        )


def fetch_wheels(
    module: AnsibleModule, app_dir: Path, folder: Path, python_version: str, machine: str
) -> None:
    """Download the locked requirements into ``folder``, unless that was done before."""
    if folder.is_dir():
        os.utime(folder)
        return
    abi = "cp" + python_version.replace(".", "")
    arguments = ["download", "--quiet", "--only-binary", ":all:", "--require-hashes", "--no-deps"]
    arguments += ["--python-version", python_version, "--implementation", "cp"]
    for tag in (abi, "abi3", "none"):
        arguments += ["--abi", tag]
    for platform in list_platforms(machine):
        arguments += ["--platform", platform]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "wheels")
        arguments += ["--dest", str(made), "--requirement", str(app_dir / "requirements.txt")]
        run_pip(
            module,
            f"download the requirements for Python {python_version} on {machine}",
            *arguments,
        )
        made.rename(folder)


def pack_release(module: AnsibleModule, app_dir: Path, wheels: Path, archive: Path) -> None:
    """Build the app's wheel from a copy of its sources, and pack everything into ``archive``."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        sources = Path(scratch, "sources")
        for path in list_sources(app_dir):
            copy = sources / path.relative_to(app_dir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        built = Path(scratch, "app")
        # The control node's own setuptools builds it: pip's isolation would download one, unlocked.
        arguments = [
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--wheel-dir",
            str(built),
        ]
        run_pip(module, "build the app", *arguments, str(sources))
        (wheel,) = built.iterdir()
        # The app like all else, so that pip runs once on the host: a version and a hash.
        name, version = wheel.name.split("-")[:2]
        wheel_hash = hashlib.sha256(wheel.read_bytes()).hexdigest()
        locked = (app_dir / "requirements.txt").read_text()
        everything = Path(scratch, "requirements.txt")
        everything.write_text(f"{locked}\n{name}=={version} --hash=sha256:{wheel_hash}\n")
        unfinished = Path(scratch, "release.tar")
        with tarfile.open(unfinished, "w") as tar:
            top = archive.stem
            tar.add(everything, f"{top}/requirements.txt")
            tar.add(wheels, f"{top}/wheels")
            tar.add(wheel, f"{top}/wheels/{wheel.name}")
        unfinished.rename(archive)


def remove_old(folder: Path, keep: int) -> None:
    """Keep the ``keep`` files or folders of ``folder`` that were used last."""
    for path in sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)[
        keep:
    ]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Read the arguments, pack the release unless it is there, and say where."""
    module = AnsibleModule(
        argument_spec={
            "app_dir": {"type": "path", "required": True},
            "wheelhouse": {"type": "path", "required": True},
            "python_version": {"type": "str", "required": True},
            "machine": {"type": "str", "required": True, "choices": ["x86_64", "aarch64"]},
        },
        supports_check_mode=True,
    )
    app_dir, wheelhouse = Path(module.params["app_dir"]), Path(module.params["wheelhouse"])
    python_version, machine = module.params["python_version"], module.params["machine"]
    target = f"{python_version}-{machine}"
    release = name_release(app_dir, target)
    archive = wheelhouse / "releases" / f"{release}.tar"
    result = {"release": release, "archive": str(archive)}
    if module.check_mode:
        module.exit_json(changed=not archive.is_file(), **result)

    for folder in (archive.parent, wheelhouse / "wheels"):
        folder.mkdir(parents=True, exist_ok=True)
    with (wheelhouse / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.is_file():
            os.utime(archive)
            module.exit_json(changed=False, **result)
        requirements = (app_dir / "requirements.txt").read_bytes()
        wheels = wheelhouse / "wheels" / f"{target}-{digest(requirements)[:10]}"
        fetch_wheels(module, app_dir, wheels, python_version, machine)
        pack_release(module, app_dir, wheels, archive)
        remove_old(archive.parent, KEEP)
        remove_old(wheels.parent, KEEP)
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
