"""Write the secret on standard input to a file: its path, owner, group and mode are the arguments.

A program and not a copy task, which would put the secret into a temporary file on the control node.
Says "unchanged" when there is nothing to do.
"""

import contextlib
import grp
import os
import pwd
import sys


def read(path):
    """Return the text of a file, or None when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def look_at(path):
    """Return who owns a file and who may read it."""
    status = os.stat(path)
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


path, owner, group, mode = sys.argv[1:]
wanted = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid, int(mode, 8)
text = sys.stdin.buffer.read().decode("utf-8")
if read(path) == text and look_at(path) == wanted:
    print("unchanged")
else:
    unfinished = path + ".new"
    # Left by a run that was killed, or put there by whom the folder belongs to.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchown(descriptor, *wanted[:2])
        os.fchmod(descriptor, wanted[2])
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(unfinished, path)
    print("written")
