"""Print as JSON what is in each folder named as argument, and the public half of its key.

{folder: {"public_key": PEM text or null, "files": {name: {"text", "owner", "group", "mode"}}}},
where a key has no text: no private key leaves the host.
"""

import grp
import json
import os
import pwd
import sys

NAMES = ("cert.pem", "ca.pem", "crl.pem", "key.pem")


def name_of(number, find):
    """Return the name of a user or a group, or its number when it has none."""
    try:
        return find(number)[0]
    except KeyError:
        return str(number)


def look_at(path):
    """Return what is in a file and whose it is, or None when it is not there."""
    try:
        # Whom the folder belongs to may have put a pipe there, on which root must not wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            return {
                "text": file.read().decode("utf-8", "replace"),
                "owner": name_of(status.st_uid, pwd.getpwuid),
                "group": name_of(status.st_gid, grp.getgrgid),
                "mode": f"{status.st_mode & 0o7777:04o}",
            }
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_public_key(pem):
    """Return the public half of a private key as PEM text, or None when it can't be read."""
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    try:
        # Ubuntu 22.04's library still wants the third argument.
        key = load_pem_private_key(pem.encode(), None, default_backend())
    except (ValueError, TypeError):
        return None
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


found = {}
for folder in sys.argv[1:]:
    files = {name: look_at(os.path.join(folder, name)) for name in NAMES}
    files = {name: file for name, file in files.items() if file}
    key = files.get("key.pem", {}).pop("text", None)
    found[folder] = {"public_key": key and read_public_key(key), "files": files}
print(json.dumps(found))
