"""Print as JSON which ports take a connection: address, port, address, port ... as arguments."""

import json
import socket
import sys


def is_open(address, port):
    try:
        with socket.create_connection((address, int(port)), timeout=5):
            return True
    except OSError:
        return False


targets = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
print(json.dumps([" port ".join(target) for target in targets if is_open(*target)]))
