"""Print as JSON what the checks before anything changes want to know of a host.

The arguments are TCP ports and, before them, as "calendar=daily" or "timespan=1h", times as
systemd.time(7) has them, as "bind=192.0.2.7" addresses, and as "user=..." or "group=..." names.
Printed are who listens on the ports, how much space is free, where the servers store messages and
which of these files are gone, which of the times systemd does not understand, which of the
addresses are not this host's, with what the system says of each, which users and groups there are
not, which CAs are trusted (and their CRLs), and whether a release is in use.

Reads /proc itself: a minimal host has neither ss nor netstat.
"""

import glob
import grp
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys


def list_listeners(ports):
    """Map the inode of each listening socket on one of ``ports`` to its port."""
    listeners = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as lines:
                rows = [line.split() for line in lines][1:]
        except OSError:
            continue
        for row in rows:
            port = int(row[1].rpartition(":")[2], 16)
            if row[3] == "0A" and port in ports:
                listeners[row[9]] = port
    return listeners


def list_holders(inodes):
    """Yield (inode, process id) for every process that has one of the sockets open."""
    for pid in filter(str.isdigit, os.listdir("/proc") if inodes else []):
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path))
                if match and match[1] in inodes:
                    yield match[1], int(pid)
        except OSError:
            continue  # the process ended meanwhile, or is a kernel thread


def describe_process(pid, port):
    """Return the name of a process and the systemd unit that it belongs to."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            units = re.findall(r"[^/\n]+\.(?:service|scope)", file.read().replace("\\x2d", "-"))
    except OSError:
        return None
    unit = units[-1] if units else ""
    if pid == 1:  # systemd holds it for a socket unit
        unit = find_socket_unit(port)
    return {"port": port, "pid": pid, "name": name, "unit": unit}


def find_socket_unit(port):
    """Return the socket unit that listens on ``port``."""
    command = ["systemctl", "list-sockets", "--no-legend", "--full", "--no-pager"]
    sockets = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in sockets.splitlines():
        fields = line.split()
        if len(fields) > 1 and fields[0].endswith(f":{port}"):
            return fields[1]
    return ""


def measure_free_space(path):
    """Return the MiB free where ``path`` is, or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free // 1024**2


def list_stores(root=""):
    """Return the stores' URLs in the settings of the servers."""
    line = re.compile(r"""^store *= *["']([^"']*)["']""", re.MULTILINE)
    stores = set()
    for path in glob.glob(f"{root}/etc/sealrelay/servers/*/server.toml"):
        with open(path, encoding="utf-8") as settings:
            stores.update(line.findall(settings.read()))
    return sorted(stores)


def list_missing_stores():
    """Return the files in which the servers stored when all was well, and that are gone."""
    paths = [url.replace("sqlite:///", "", 1) for url in list_stores("/opt/sealrelay/good")]
    return [path for path in paths if path.startswith("/") and not os.path.exists(path)]


def list_authorities():
    """Return what is trusted here: {"ca": PEM text, "crl": PEM text}, each pair once."""
    found = []
    for path in sorted(glob.glob("/etc/sealrelay/**/ca.pem", recursive=True)):
        texts = {"ca": read_text(path), "crl": read_text(path.replace("ca.pem", "crl.pem"))}
        if texts not in found:
            found.append(texts)
    return found


def read_text(path):
    """Return what is in a file, "" when it is not there."""
    try:
        # Whom the folder belongs to may have put a pipe there, on which root must not wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return file.read().decode("ascii", "replace")
    except OSError:
        return ""


def find_misunderstood(times):
    """Return those of the times that systemd does not understand."""
    commands = {time: ["systemd-analyze", *time.split("=", 1)] for time in times}
    return [
        time
        for time, command in commands.items()
        if subprocess.run(command, capture_output=True, check=False).returncode
    ]


def find_unbindable(addresses):
    """Return why nothing can listen on them, of those addresses or names where nothing can."""
    unbindable = {}
    for address in addresses:
        # As gunicorn binds.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.bind((address, 0))
        except OSError as error:
            unbindable[address] = error.strerror or str(error)
    return unbindable


def find_unknown(questions):
    """Return those of the users and groups that the host does not have, as they were asked."""
    unknown = []
    for kind, name in questions:
        try:
            pwd.getpwnam(name) if kind == "user" else grp.getgrnam(name)
        except KeyError:
            unknown.append(f"{kind} {name}")
    return unknown


questions = [argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument]
times = ["=".join(question) for question in questions if question[0] in ("calendar", "timespan")]
listening = list_listeners({int(port) for port in sys.argv[1:] if "=" not in port})
holders = [describe_process(pid, listening[inode]) for inode, pid in list_holders(set(listening))]
holders = [holder for holder in holders if holder]
known = {holder["port"] for holder in holders}
holders += [
    {"port": port, "pid": 0, "name": "", "unit": ""}
    for port in listening.values()
    if port not in known
]
print(
    json.dumps(
        {
            "listeners": holders,
            "free_mb": {path: measure_free_space(path) for path in ("/opt", "/var/lib")},
            "stores": list_stores(),
            "missing_stores": list_missing_stores(),
            "misunderstood": find_misunderstood(times),
            "authorities": list_authorities(),
            "deployed": os.path.exists("/opt/sealrelay/current"),
            "unbindable": find_unbindable(value for kind, value in questions if kind == "bind"),
            "unknown": find_unknown(pair for pair in questions if pair[0] in ("user", "group")),
        }
    )
)
