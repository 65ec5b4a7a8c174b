"""Print as JSON, in base64, the payload keys of the clients that live on this host.

The arguments are the folder of the clients, the names of the file with the keys and of that with
the next ones, and the clients. What is not there is null.
"""

import base64
import json
import os
import sys


def read(path):
    """Return what is in a file in base64, or None when there is none."""
    try:
        with open(path, "rb") as file:
            return base64.b64encode(file.read()).decode("ascii")
    except FileNotFoundError:
        return None


folder, own, following, *clients = sys.argv[1:]
found = {}
for client in clients:
    home = os.path.join(folder, client)
    found[client] = {
        "own": read(os.path.join(home, own)),
        "next": read(os.path.join(home, following)),
    }
print(json.dumps(found))
