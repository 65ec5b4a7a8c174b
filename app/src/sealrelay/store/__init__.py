"""The store: every sealed token, once.

``schema`` and ``migrations`` say what, ``engines`` where, ``sql`` how, ``group`` and ``patience``
when.
"""

from sealrelay.store.group import GroupCommit
from sealrelay.store.patience import LONGEST, PAUSE, insist
from sealrelay.store.records import (
    NewToken,
    Pruned,
    Record,
    Replaced,
    SchemaOutdated,
    Stored,
    StoreError,
    StoreFull,
    StoreMoved,
)
from sealrelay.store.sql import SqlStore, open_store

__all__ = [
    "LONGEST",
    "PAUSE",
    "GroupCommit",
    "NewToken",
    "Pruned",
    "Record",
    "Replaced",
    "SchemaOutdated",
    "SqlStore",
    "StoreError",
    "StoreFull",
    "StoreMoved",
    "Stored",
    "insist",
    "open_store",
]
