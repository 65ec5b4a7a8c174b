"""Put files into folders, all of a folder at once as far as a file system can.

Reads JSON: a list of {"folders": [pattern, ...], "files": {name: text}, "having": name, "rename":
{old: new}, "modes": {name: octal}, "owner": user, "group": group, "pretend": bool}. Only folders
that have the file `having`, if it is given, count. All new files are complete, with owner and mode,
before the first is renamed into its place; `rename` does the same with files that are there. A name
that is in `modes` only is a file whose owner and mode are looked after. Without owner and group
those of `having` are taken. Says which folders it changed, or would change.
"""

import contextlib
import errno
import glob
import grp
import json
import os
import pwd
import sys

MODE = "0644"  # certificates and CRLs: what everybody may see


def look_at(path):
    """Return what is in a file, its owner, group and mode; None when there is none."""
    try:
        # Whom the folder belongs to may have put a pipe there, on which root must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            status = os.fstat(file.fileno())
            return file.read(), status.st_uid, status.st_gid, status.st_mode & 0o7777
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path, text, owner, group, mode):
    """Write a file that is not there yet."""
    # Left by a run that was killed, or put there by whom the folder belongs to.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchown(descriptor, owner, group)
        os.fchmod(descriptor, mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def give(path, owner, group, mode, pretend):
    """Give a file its owner and mode, a link to another file excepted; whether that changes it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise
    try:
        status = os.fstat(descriptor)
        if (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (owner, group, mode):
            return False
        if not pretend:
            os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, mode)
        return True
    finally:
        os.close(descriptor)


def find_owner(folder, spec):
    """Return the numbers of owner and group; a dry run of a first deployment has not made them."""
    if "owner" not in spec:
        status = os.stat(os.path.join(folder, spec["having"]))
        return status.st_uid, status.st_gid
    try:
        return pwd.getpwnam(spec["owner"]).pw_uid, grp.getgrnam(spec["group"]).gr_gid
    except KeyError:
        if spec["pretend"]:
            return -1, -1
        raise


def put(folder, spec):
    """Put the files into a folder; whether that changes anything."""
    owner, group = find_owner(folder, spec)
    modes = {name: int(mode, 8) for name, mode in spec.get("modes", {}).items()}
    changed = False
    renames = {}
    for old, new in spec.get("rename", {}).items():
        path = os.path.join(folder, old)
        if os.path.lexists(path):
            renames[path] = os.path.join(folder, new)
            if new in modes:
                give(path, owner, group, modes[new], spec["pretend"])
    for name in set(modes) - set(spec["files"]) - set(spec.get("rename", {}).values()):
        changed |= give(os.path.join(folder, name), owner, group, modes[name], spec["pretend"])
    for name, text in spec["files"].items():
        path = os.path.join(folder, name)
        mode = modes.get(name, int(MODE, 8))
        if look_at(path) != (text, owner, group, mode):
            renames[path + ".new"] = path
            if not spec["pretend"]:
                write(path + ".new", text, owner, group, mode)
    if not spec["pretend"]:
        for old, new in renames.items():
            os.replace(old, new)
    return changed or bool(renames)


def find_folders(spec):
    """Return the folders that the patterns stand for and that count."""
    folders = {folder for pattern in spec["folders"] for folder in glob.glob(pattern)}
    if not folders and spec["pretend"] and "having" not in spec:
        return spec["folders"]
    having = spec.get("having")
    return sorted(f for f in folders if having is None or os.path.exists(os.path.join(f, having)))


for spec in json.load(sys.stdin):
    for folder in find_folders(spec):
        if put(folder, spec):
            print(folder)
