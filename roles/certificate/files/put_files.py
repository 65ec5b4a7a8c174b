"""Put files into one folder or several, all at once as far as a file system can.

Reads JSON: {"folders": [pattern, ...], "files": {name: text}, "having": name, "rename": {old: new},
"modes": {name: octal}, "owner": user, "group": group, "pretend": bool}. Only folders that have the
file `having`, if it is given, count. All new files are complete, with owner and mode, before the
first is renamed into its place; `rename` does the same with files that are there. Without owner and
group those of `having` are taken. Says which folders it changed, or would change.
"""

import contextlib
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
        with open(path, encoding="utf-8", errors="replace") as file:
            status = os.fstat(file.fileno())
            return file.read(), status.st_uid, status.st_gid, status.st_mode & 0o7777
    except FileNotFoundError:
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


def put(folder, spec):
    """Put the files into a folder; whether that changes anything."""
    if "owner" in spec:
        owner, group = pwd.getpwnam(spec["owner"]).pw_uid, grp.getgrnam(spec["group"]).gr_gid
    else:
        status = os.stat(os.path.join(folder, spec["having"]))
        owner, group = status.st_uid, status.st_gid
    renames = {
        os.path.join(folder, old): os.path.join(folder, new)
        for old, new in spec.get("rename", {}).items()
        if os.path.lexists(os.path.join(folder, old))
    }
    for name, text in spec["files"].items():
        path = os.path.join(folder, name)
        mode = int(spec.get("modes", {}).get(name, MODE), 8)
        if look_at(path) != (text, owner, group, mode):
            renames[path + ".new"] = path
            if not spec["pretend"]:
                write(path + ".new", text, owner, group, mode)
    if not spec["pretend"]:
        for old, new in renames.items():
            os.replace(old, new)
    return bool(renames)


spec = json.load(sys.stdin)
folders = sorted({folder for pattern in spec["folders"] for folder in glob.glob(pattern)})
for folder in folders:
    having = spec.get("having")
    if (having is None or os.path.exists(os.path.join(folder, having))) and put(folder, spec):
        print(folder)
