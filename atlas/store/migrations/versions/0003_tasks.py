"""The task journal: tasks, their finished steps, and what their owners used of the sandbox per day."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("request", sa.LargeBinary),
        sa.Column("request_blob", sa.String(64)),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("delivery", sa.Integer, nullable=False),
        sa.Column("excused", sa.Integer, nullable=False),
        sa.Column("max_deliveries", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("leased_at", sa.Float),
        sa.Column("closed_at", sa.Float),
        sa.Column("not_before", sa.Float),
        sa.Column("deadline", sa.Float),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("closed_by", sa.Integer),
        sa.Column("is_cancel_requested", sa.Boolean, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("result_blob", sa.String(64)),
        sa.Column("result_ttl_s", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, index=True),
        sa.Column("sandbox_s", sa.Float, nullable=False),
        sa.Column("num_fenced", sa.Integer, nullable=False),
        sa.Column("accepted_at", sa.Float),
        sa.Column("accepted", sa.LargeBinary),
        sa.Column("accepted_blob", sa.String(64)),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_tasks_idempotency"),
        sa.Index("ix_tasks_state_owner", "state", "owner"),
        sa.Index("ix_tasks_owner_created_at", "owner", "created_at"),
    )
    op.create_table(
        "task_steps",
        sa.Column("task_id", sa.String(32), sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("step", sa.String(200), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("result_blob", sa.String(64)),
    )
    op.create_table(
        "task_days",
        sa.Column("owner", sa.String(32), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sandbox_s", sa.Float, nullable=False),
    )
