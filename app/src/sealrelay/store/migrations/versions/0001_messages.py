"""The table of messages. Adopts the one that releases without migrations made themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    if sa.inspect(op.get_bind()).has_table("messages"):
        return
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "messages",
        sa.Column("id", sa.LargeBinary(32), primary_key=True, comment="the token's HMAC tag"),
        sa.Column(
            "client", sa.String(63), nullable=False, comment="name in the sender's certificate"
        ),
        sa.Column("token", sa.Text, nullable=False, comment="the sealed token, canonical"),
        sa.Column("sealed_at", number, nullable=False, comment="client's clock, s since the epoch"),
        sa.Column(
            "received_at", number, nullable=False, comment="server's clock, ms since the epoch"
        ),
        sa.Column(
            "server", sa.String(63), nullable=False, comment="name of the server that stored it"
        ),
    )
    op.create_index("messages_received_at", "messages", ["received_at"])
