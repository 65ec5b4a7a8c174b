"""Connect to a port again and again while a command runs. Reads JSON: port, command.

Prints {code, connected, refused, failed}; code is the command's.
"""

import json
import socket
import subprocess
import sys
import time

given = json.load(sys.stdin)
answer = {"connected": 0, "refused": 0, "failed": 0}
process = subprocess.Popen(given["command"])
while process.poll() is None or answer["connected"] == 0:
    try:
        with socket.create_connection(("127.0.0.1", given["port"]), timeout=5):
            answer["connected"] += 1
    except ConnectionRefusedError:
        answer["refused"] += 1
    except OSError:
        answer["failed"] += 1
    time.sleep(0.002)
answer["code"] = process.returncode
json.dump(answer, sys.stdout)
