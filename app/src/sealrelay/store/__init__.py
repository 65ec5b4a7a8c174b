"""The store: every sealed token, once.

``schema`` and ``migrations`` say what, ``engines`` where, ``sql`` how, ``group`` when.
"""

from sealrelay.store.group import GroupCommit
from sealrelay.store.records import Pruned, Record, SchemaOutdated, Stored, StoreError, StoreFull
from sealrelay.store.sql import SqlStore, open_store

__all__ = [
    "GroupCommit",
    "Pruned",
    "Record",
    "SchemaOutdated",
    "SqlStore",
    "StoreError",
    "StoreFull",
    "Stored",
    "open_store",
]
