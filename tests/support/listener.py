"""A program on a node that answers on a port, and whether one comes through to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.node import Node, wait_for

_ECHO = """
import socket, sys, threading
def answer(connection):
    while data := connection.recv(100):
        connection.sendall(data)
held = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    threading.Thread(target=answer, args=(held.accept()[0],), daemon=True).start()
"""
# From another node, which has no program of ours but Python.
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()
    print("open")
except ConnectionRefusedError:
    print("refused")
"""


def find_address(node: Node) -> str:
    """Where a node is on the lab's bridge."""
    return node.run("hostname", "-I").split()[0]


@contextmanager
def listening(node: Node, port: int) -> Iterator[str]:
    """Someone echoes on a port of the node's address, where no server listens; that address."""
    address, unit = find_address(node), f"listener-of-a-test-{port}"
    run = ["systemd-run", "--quiet", "--collect", "--unit", unit, "--description", unit]
    node.run(*run, "python3", "-c", _ECHO, address, str(port))
    try:
        wait_for(
            lambda: address in node.run("ss", "-Hltn", f"sport = :{port}"), f"{port} is listened on"
        )
        yield address
    finally:
        node.run("systemctl", "stop", f"{unit}.service")


def is_let_in(address: str, port: int) -> bool:
    """Whether this machine can connect; fails the test where nobody says no."""
    try:
        with socket.create_connection((address, port), timeout=10):
            return True
    except ConnectionRefusedError:
        return False


def lets_in(caller: Node, address: str, port: int) -> bool:
    """Whether a node can connect; fails the test where nobody says no."""
    said = caller.run("python3", "-c", _CONNECT, address, str(port)).strip()
    assert said in ("open", "refused"), said
    return said == "open"
