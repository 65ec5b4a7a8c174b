"""What ``migrate`` and ``prune`` share: the store of a server, as the user it belongs to."""

from __future__ import annotations

import ctypes
import os

import click

from sealrelay.cli.options import FILE
from sealrelay.store import SqlStore

_PR_SET_DUMPABLE = 4

store_config_option = click.option(
    "--config",
    "path",
    type=FILE,
    required=True,
    metavar="FILE",
    help="The settings file of a server that uses the store.",
)


def would_become_owner(store: SqlStore) -> bool:
    """Whether ``become_owner`` gives root's rights away, for good."""
    return _find_owner(store) is not None


def _find_owner(store: SqlStore) -> os.stat_result | None:
    if store.file is None or os.geteuid() != 0:
        return None
    owner = (store.file if store.file.exists() else store.file.parent).stat()
    return None if owner.st_uid == 0 else owner


def become_owner(store: SqlStore) -> None:
    """As root, go on as the owner of the store's file, or of its folder where there is none yet.

    A file that root made beside it (-wal, -shm) would lock the servers out.
    """
    owner = _find_owner(store)
    if owner is None:
        return
    os.umask(0o027)
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    # setuid(2) hides a process from others of its new user, as prctl(2) has it; but the servers
    # must be able to see that one of theirs is stopped while it keeps the store.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
