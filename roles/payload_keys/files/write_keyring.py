"""Write the keyring on standard input to the file named first, for root and the group named second.

A program and not a copy task, which would put the keys into a temporary file on the control node.
Says "unchanged" when there is nothing to do.
"""

import os
import shutil
import sys


def read(path):
    """Return the text of a file, or None when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return None


keyring, group = sys.argv[1:]
text = sys.stdin.read()
if read(keyring) == text:
    print("unchanged")
else:
    unfinished = keyring + ".new"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        shutil.chown(unfinished, "root", group)
        os.fchmod(descriptor, 0o640)
        file.flush()
        os.fsync(descriptor)
    os.replace(unfinished, keyring)
    print("written")
