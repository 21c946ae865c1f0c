"""Keys say whether their requests may leave this machine; those that are there may not."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("allow_remote", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("api_keys") as batch:
        batch.alter_column("allow_remote", server_default=None, existing_type=sa.Boolean, existing_nullable=False)
