#!/usr/bin/python
"""Ansible module: put the folders, files and links of a role in place, all in one run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: place_files
short_description: Put folders, files and links in place, with owner and mode, in one run
description:
  - One run does what a task for each file would do, which costs a connection and a Python start.
  - A file is complete, with its owner and mode, before it takes its place. What is right stays.
  - A link in the place of a file is replaced, one in the place of a folder is refused; none is
    followed, so a folder that belongs to somebody else cannot lead to a file of root's.
  - Not for secrets, since C(--diff) shows contents.
options:
  folders:
    description: Folders, made in this order. Missing parents are made as root's, mode 0755.
    type: list
    elements: dict
    default: []
    suboptions: &attributes
      path:
        description: Absolute path.
        type: path
        required: true
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
      mode:
        description: Mode in octal digits, in quotes.
        type: str
        required: true
  files:
    description: Files.
    type: list
    elements: dict
    default: []
    suboptions:
      <<: *attributes
      content:
        description:
          - The text. Without it only owner and mode are looked after, where there is such a file.
        type: str
      validate:
        description:
          - Command that judges the new file, whose path takes the place of C(%s).
          - Only asked when the content changes.
        type: list
        elements: str
        default: []
  links:
    description: Symbolic links; replaced in one step.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path of the link.
        type: path
        required: true
      target:
        description: What it leads to; need not exist.
        type: str
        required: true
  absent:
    description: Files and links that must not be there. A folder is refused.
    type: list
    elements: path
    default: []
author:
  - the sealrelay authors
"""

RETURN = r"""
places:
  description: Paths that were changed or, in check mode, would be.
  type: list
  elements: str
  returned: always
"""

import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "required": True},
}
_NOBODY = -1


class Refused(Exception):
    """What is wrong, in words for the user."""


def find_ids(place: dict[str, Any], check: bool) -> tuple[int, int]:
    """Return the numbers of owner and group. A dry run of a first deployment has not made them."""
    try:
        return pwd.getpwnam(place["owner"]).pw_uid, grp.getgrnam(place["group"]).gr_gid
    except KeyError as error:
        if check:
            return _NOBODY, _NOBODY
        raise Refused(f"{place['path']}: {error.args[0]}") from None


def look_at(path: str) -> os.stat_result | None:
    """Return what is at a path, a link itself and not what it leads to."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_file(path: str) -> str | None:
    """Return the text of a regular file, which no link is; None when there is none."""
    try:
        # Whom the folder belongs to may have put a pipe there, on which root must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace", newline="") as file:
            return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None


def make_folder(path: str) -> None:
    """Make a folder and its missing parents, which everybody may enter whatever the umask is."""
    umask = os.umask(0o022)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(umask)


def describe(ids: tuple[int, int], mode: int) -> str:
    """Say in a word for --diff whose something is."""
    return f"{ids[0]}:{ids[1]} {mode:04o}"


class Placer:
    """Puts things in place and remembers what has changed."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._check: bool = module.check_mode
        self.places: list[str] = []
        self.diffs: list[dict[str, str]] = []

    def place_folder(self, folder: dict[str, Any]) -> None:
        """Make a folder, or mend its owner and mode."""
        path, ids, mode = folder["path"], find_ids(folder, self._check), int(folder["mode"], 8)
        there = look_at(path)
        if there is None:
            self._note(path, "", "a folder")
            if not self._check:
                make_folder(path)
                self._give(path, ids, mode, os.O_DIRECTORY)
        elif not stat.S_ISDIR(there.st_mode):
            raise Refused(f"{path} is there and is no folder; move it away")
        else:
            self._mend(path, there, ids, mode, os.O_DIRECTORY)

    def place_file(self, file: dict[str, Any]) -> None:
        """Write a file, or mend its owner and mode."""
        path, ids, mode = file["path"], find_ids(file, self._check), int(file["mode"], 8)
        there, content = look_at(path), file["content"]
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise Refused(f"{path} is a folder; move it away")
        if content is None:
            if there is not None and stat.S_ISREG(there.st_mode):
                self._mend(path, there, ids, mode)
            return
        before = read_file(path)
        if before == content and there is not None:
            self._mend(path, there, ids, mode)
            return
        self._note(path, before or "", content)
        if not self._check:
            self._write(file, ids, mode)
        elif file["validate"] and Path(file["validate"][0]).exists():
            # A dry run of a first deployment has nothing to ask.
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="") as draft:
                draft.write(content)
                draft.flush()
                self._validate(file, draft.name)

    def place_link(self, link: dict[str, str]) -> None:
        """Let a link lead to its target; there is no moment without it."""
        path, target = link["path"], link["target"]
        there = look_at(path)
        if there is not None and stat.S_ISLNK(there.st_mode):
            before = str(Path(path).readlink())
            if before == str(Path(target)):
                return
        elif there is not None and stat.S_ISDIR(there.st_mode):
            raise Refused(f"{path} is a folder; move it away")
        else:
            before = "a file" if there else ""
        self._note(path, before, target)
        if not self._check:
            new = Path(path + ".new")
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.replace(path)

    def remove(self, path: str) -> None:
        """Remove a file or link."""
        there = look_at(path)
        if there is None:
            return
        if stat.S_ISDIR(there.st_mode):
            raise Refused(f"{path} is a folder; move it away")
        self._note(path, read_file(path) or "", "")
        if not self._check:
            Path(path).unlink()

    def _write(self, file: dict[str, Any], ids: tuple[int, int], mode: int) -> None:
        new = Path(file["path"] + ".new")
        # Left by a run that was killed, or put there by whom the folder belongs to.
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as draft:
                draft.write(file["content"])
                draft.flush()
                os.fchown(descriptor, *ids)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            self._validate(file, str(new))
            new.replace(file["path"])
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def _validate(self, file: dict[str, Any], draft: str) -> None:
        if not file["validate"]:
            return
        command = [word.replace("%s", draft) for word in file["validate"]]
        status, out, errors = self._module.run_command(command)
        if status:
            said = (errors.strip() or out.strip() or f"exit code {status}").replace(
                draft, file["path"]
            )
            raise Refused(f"{file['path']} would not be valid: {said}")

    def _mend(
        self, path: str, there: os.stat_result, ids: tuple[int, int], mode: int, flags: int = 0
    ) -> None:
        before = describe((there.st_uid, there.st_gid), stat.S_IMODE(there.st_mode))
        after = describe(ids, mode)
        if before == after:
            return
        self._note(path, before, after)
        if not self._check:
            self._give(path, ids, mode, flags)

    def _give(self, path: str, ids: tuple[int, int], mode: int, flags: int) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
        try:
            os.fchown(descriptor, *ids)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)

    def _note(self, path: str, before: str, after: str) -> None:
        self.places.append(path)
        lines = {"before": before, "after": after}
        shown = {
            side: text if text.endswith("\n") or not text else text + "\n"
            for side, text in lines.items()
        }
        self.diffs.append({"before_header": path, "after_header": path, **shown})


def main() -> None:
    """Read the arguments and put everything in place, in the order of the arguments."""
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "dict", "default": [], "options": ATTRIBUTES},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    **ATTRIBUTES,
                    "content": {"type": "str"},
                    "validate": {"type": "list", "elements": "str", "default": []},
                },
            },
            "links": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "target": {"type": "str", "required": True},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    placer = Placer(module)
    try:
        for folder in module.params["folders"]:
            placer.place_folder(folder)
        for file in module.params["files"]:
            placer.place_file(file)
        for link in module.params["links"]:
            placer.place_link(link)
        for path in module.params["absent"]:
            placer.remove(path)
    except (Refused, OSError) as error:
        module.fail_json(msg=str(error), places=placer.places, diff=placer.diffs)
    module.exit_json(changed=bool(placer.places), places=placer.places, diff=placer.diffs)


if __name__ == "__main__":
    main()
