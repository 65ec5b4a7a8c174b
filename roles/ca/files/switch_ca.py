"""Let the next CA sign, and keep the one before trusted. The argument is the CA's folder.

Every step is one renaming, and what is done already is left alone: a switch that was interrupted
is finished by the next. Says "unchanged" when there is nothing to do.
"""

import os
import shutil
import sys
from pathlib import Path

FILES = ("ca.key", "ca.pem", "crl.pem")

folder = Path(sys.argv[1])
coming, previous, unfinished = folder / "next", folder / "previous", folder / "previous.new"
if not coming.exists():
    print("unchanged")
    sys.exit()
if not previous.exists():
    # A copy under a name that doesn't count: a kill in its middle must not leave half a CA behind.
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(0o700)
    for name in FILES:
        shutil.copy2(folder / name, unfinished / name)
        with open(unfinished / name, "rb") as file:
            os.fsync(file.fileno())
    unfinished.rename(previous)
for name in FILES:
    if (coming / name).exists():
        (coming / name).replace(folder / name)
coming.rmdir()
print("switched")
