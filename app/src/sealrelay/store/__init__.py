"""The store: every sealed token, once. ``schema`` says what, ``sql`` where, ``group`` when."""

from sealrelay.store.group import GroupCommit
from sealrelay.store.sql import Record, SqlStore, Stored, StoreError, StoreFull, open_store

__all__ = ["GroupCommit", "Record", "SqlStore", "StoreError", "StoreFull", "Stored", "open_store"]
