"""Wait until every service of the host that runs uses the files that are there.

One that doesn't run reads the files when it starts. Asks all of them at once, and says of each that
does not use them why.
"""

import re
import subprocess
import sys

PROGRAM = "/opt/sealrelay/current/bin/sealrelay"
SECONDS = "60"


def find_settings(unit):
    """Return the settings file of a unit."""
    server = re.fullmatch(r"sealrelay-server@(.+)\.service", unit)
    if server:
        return f"/etc/sealrelay/servers/{server[1]}/server.toml"
    return "/etc/sealrelay/coordinator/coordinator.toml"


listing = subprocess.run(
    [
        *("systemctl", "list-units", "--plain", "--no-legend", "--state=active"),
        *("sealrelay-coordinator.service", "sealrelay-server@*.service"),
    ],
    capture_output=True,
    text=True,
    check=True,
).stdout
probes = [
    subprocess.Popen(
        [
            *(PROGRAM, "probe", "--config", find_settings(line.split()[0])),
            *("--reloaded", "--wait", SECONDS),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in listing.splitlines()
]
said = [(probe.communicate()[1].strip(), probe.returncode) for probe in probes]
sys.exit("\n".join(errors or f"exit code {code}" for errors, code in said if code) or 0)
