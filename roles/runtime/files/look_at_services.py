"""Print as JSON what a role wants to know of its services before it changes anything of them.

The argument is JSON: "release", the folder of the release that is to run; "units", a systemd unit
with its settings file and the file of the unit, or null where the unit is no service of ours;
"schema", the command that judges the store's schema, and "home", its HOME; "folder", whose folders
are listed; "paths", of which those that exist are listed.

All programs run at once. A unit is current when `sealrelay probe --current` of the release says so.
"""

import json
import os
import subprocess
import sys

PROPERTIES = ("Id", "ActiveState", "UnitFileState", "NeedDaemonReload", "Listen", "Backlog")


def start(command, **options):
    """Start a program, whose output is read later."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def show_units(units):
    """Return the properties of each unit, as systemd has them loaded."""
    command = ["systemctl", "show", "--property", ",".join(PROPERTIES), *units]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines())
        for block in shown.strip().split("\n\n")
    ]
    return dict(zip(units, blocks))  # noqa: B905 - hosts may have Python 3.9


asked = json.loads(sys.argv[1])
program = os.path.join(asked["release"], "bin", "sealrelay")
probes = {
    unit: start(
        [program, "probe", "--config", files["config"], "--current", "--input", files["unit"]]
    )
    for unit, files in asked["units"].items()
    if files
}
judge = (
    start(asked["schema"], env={**os.environ, "HOME": asked["home"]})
    if asked.get("schema")
    else None
)
found = {"units": show_units(list(asked["units"])), "schema": {"rc": 0, "said": ""}}
if judge:
    said = judge.communicate()[1].strip().splitlines()
    found["schema"] = {"rc": judge.returncode, "said": said[-1] if said else ""}
for unit, probe in probes.items():
    probe.communicate()
    found["units"][unit]["current"] = probe.returncode == 0
try:
    found["release"] = os.readlink("/opt/sealrelay/current")
except OSError:
    found["release"] = ""
folder = asked.get("folder", "")
found["folders"] = (
    sorted(e.name for e in os.scandir(folder) if e.is_dir()) if os.path.isdir(folder) else []
)
found["paths"] = [path for path in asked.get("paths", []) if os.path.lexists(path)]
for unit in found["units"].values():
    running = unit["ActiveState"] in ("active", "activating", "reloading")
    unit["good"] = (
        running
        and unit["UnitFileState"] == "enabled"
        and unit.get("current", unit["NeedDaemonReload"] == "no")
    )
print(json.dumps(found))
