"""What Alembic runs migrations with: the connection and the transaction of `sealrelay migrate`."""

from __future__ import annotations

from alembic import context

from sealrelay.store.schema import REVISION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=REVISION_TABLE,
    transactional_ddl=True,  # SQLite can, too, since BEGIN is ours; see store/engines.py
)
with context.begin_transaction():
    context.run_migrations()
