"""The tables. A message's id is its key, which is what makes storing it idempotent."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

REVISION = "0001"
"""The newest migration. Revisions are numbered, and each only adds to the ones before."""
REVISION_TABLE = "sealrelay_schema"

metadata = MetaData()

_Number = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's integers have 64 bits anyway

messages = Table(
    "messages",
    metadata,
    Column("id", LargeBinary(32), primary_key=True, comment="the token's HMAC tag"),
    Column("client", String(63), nullable=False, comment="name in the sender's certificate"),
    Column("token", Text, nullable=False, comment="the sealed token, canonical"),
    Column("sealed_at", _Number, nullable=False, comment="client's clock, s since the epoch"),
    Column("received_at", _Number, nullable=False, comment="server's clock, ms since the epoch"),
    Column("server", String(63), nullable=False, comment="name of the server that stored it"),
)
Index("messages_received_at", messages.c.received_at)
