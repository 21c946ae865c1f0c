"""Accounts, sessions, the audit log and metered usage; the keys that are there become the owner account's."""

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OLD_SCOPES = ["chat"]
NEW_SCOPES = ["chat", "embeddings", "tasks", "projects", "read"]


def upgrade() -> None:
    _make_users()
    _extend_keys(_make_owner())
    _make_sessions()
    _make_audit_log()
    _make_usage()


def _make_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("username", sa.String(50), nullable=False),
        sa.Column("username_key", sa.String(50), unique=True),
        sa.Column("email", sa.String(255), nullable=False),
        sa.Column("email_key", sa.String(255), unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("password", sa.String(255)),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("disabled_at", sa.Float),
    )
    op.create_table(
        "one_time_tokens",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id")),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("email", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )


def _make_owner() -> str:
    """The account that set-up completes; its id."""
    owner = f"usr_{secrets.token_hex(8)}"
    users = sa.table(
        "users",
        *map(sa.column, ("id", "username", "email", "role", "generation", "created_at")),
        sa.column("limits", sa.JSON),
    )
    op.execute(
        users.insert().values(id=owner, username="", email="", role="owner", limits={}, generation=0, created_at=time.time())
    )
    return owner


def _extend_keys(owner: str) -> None:
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("models", sa.JSON))
        batch.add_column(sa.Column("limits", sa.JSON, nullable=False, server_default="{}"))
        batch.add_column(sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()))
        batch.add_column(sa.Column("rotated_to", sa.String(32)))
    keys = sa.table("api_keys", *map(sa.column, ("id", "owner")), sa.column("scopes", sa.JSON))
    op.execute(keys.update().values(owner=owner))
    connection = op.get_bind()
    for key_id, scopes in connection.execute(sa.select(keys.c.id, keys.c.scopes)).all():
        if scopes == OLD_SCOPES:
            connection.execute(keys.update().where(keys.c.id == key_id).values(scopes=NEW_SCOPES))
    with op.batch_alter_table("api_keys") as batch:
        batch.alter_column("owner", type_=sa.String(32), existing_type=sa.String(200), existing_nullable=False)
        batch.alter_column("limits", server_default=None, existing_type=sa.JSON, existing_nullable=False)
        batch.alter_column("is_active", server_default=None, existing_type=sa.Boolean, existing_nullable=False)
        batch.create_foreign_key("fk_api_keys_owner", "users", ["owner"], ["id"])


def _make_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("csrf", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("last_seen_at", sa.Float, nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("user_agent", sa.String(200), nullable=False),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("family", sa.String(32), nullable=False, index=True),
        sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False, index=True),
        sa.Column("used_at", sa.Float),
        sa.Column("source", sa.String(64), nullable=False),
    )


def _make_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("object", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )


def _make_usage() -> None:
    op.create_table(
        "reservations",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("route", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "usage_events",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("route", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "cost")
        ),
        sa.Column("finish", sa.String(64), nullable=False),
        sa.Column("is_streamed", sa.Boolean, nullable=False),
        sa.Column("is_estimated", sa.Boolean, nullable=False),
        sa.Column("queue_s", sa.Float, nullable=False),
        sa.Column("ttft_s", sa.Float),
        sa.Column("wall_s", sa.Float, nullable=False),
        sa.Index("ix_usage_events_owner_at", "owner", "at"),
    )
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(200), primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
        ),
        sa.Column("wall_s", sa.Float, nullable=False),
    )
