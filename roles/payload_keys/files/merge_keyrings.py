"""Run `sealrelay keyring merge` for each keyring of a host, all at once.

Reads JSON: {"command": [word, ...], "keyrings": {path: keys}}; prints as JSON what each run said.
Keys are passed on standard input, where no other user sees them.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def merge(keyring):
    """Run the command for one keyring."""
    path, keys = keyring
    done = subprocess.run(
        [*asked["command"], path], input=keys, capture_output=True, text=True, check=False
    )
    return path, {"rc": done.returncode, "said": done.stdout.strip(), "errors": done.stderr.strip()}


asked = json.load(sys.stdin)
with ThreadPoolExecutor(4) as runs:
    print(json.dumps(dict(runs.map(merge, asked["keyrings"].items()))))
