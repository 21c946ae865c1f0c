"""The ledger's tables as the code sees them; `migrations` makes them, and a test compares the two.

Times are Unix seconds. What a stranger could use (passwords, keys, tokens) is here as a hash only.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("username", sa.String(50), nullable=False),  # empty before set-up
    sa.Column("username_key", sa.String(50), unique=True),  # case-folded; NULL before set-up
    sa.Column("email", sa.String(255), nullable=False),
    sa.Column("email_key", sa.String(255), unique=True),  # case-folded; NULL for none
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("password", sa.String(255)),  # argon2id, with its parameters
    sa.Column("generation", sa.Integer, nullable=False),  # raised to end every session and access token at once
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("disabled_at", sa.Float),
)

one_time_tokens = sa.Table(
    "one_time_tokens",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # SHA-256
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),  # setup, invitation, reset
    sa.Column("user_id", sa.ForeignKey("users.id")),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("email", sa.String(255), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),  # HMAC-SHA256(pepper, key)
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("owner", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("models", sa.JSON),  # JSON null for all
    sa.Column("allow_remote", sa.Boolean, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("prefix", sa.String(12), nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    sa.Column("rotated_to", sa.String(32)),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
    sa.Column("last_used_at", sa.Float),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the cookie
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("csrf", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("user_agent", sa.String(200), nullable=False),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # SHA-256
    sa.Column("family", sa.String(32), nullable=False, index=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False, index=True),
    sa.Column("used_at", sa.Float),  # kept after use: its return means that somebody copied it
    sa.Column("source", sa.String(64), nullable=False),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),  # from 1, without gaps
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("object", sa.String(64), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),  # canonical JSON, as it was hashed
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

reservations = sa.Table(
    "reservations",
    metadata,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("route", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),  # millionths of the currency, as all costs here
)

usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("route", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("finish", sa.String(64), nullable=False),
    sa.Column("is_streamed", sa.Boolean, nullable=False),
    sa.Column("is_estimated", sa.Boolean, nullable=False),
    sa.Column("queue_s", sa.Float, nullable=False),
    sa.Column("ttft_s", sa.Float),
    sa.Column("wall_s", sa.Float, nullable=False),
    sa.Index("ix_usage_events_owner_at", "owner", "at"),
)

usage_hours = sa.Table(
    "usage_hours",
    metadata,
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),  # Unix time // 3600
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("wall_s", sa.Float, nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),  # queued, leased, running, closed
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("request", sa.LargeBinary),  # a body is here or, if it is long, in a blob of the task's folder
    sa.Column("request_blob", sa.String(64)),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("delivery", sa.Integer, nullable=False),  # raised by each hand-over to a worker; what a late one is fenced by
    sa.Column("excused", sa.Integer, nullable=False),  # deliveries that do not count towards max_deliveries
    sa.Column("max_deliveries", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
    sa.Column("leased_at", sa.Float),
    sa.Column("closed_at", sa.Float),
    sa.Column("not_before", sa.Float),
    sa.Column("deadline", sa.Float),
    sa.Column("worker", sa.String(64), nullable=False),
    sa.Column("outcome", sa.String(16)),  # done, failed, cancelled, dead, expired
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("closed_by", sa.Integer),  # the delivery whose finish closed it
    sa.Column("is_cancel_requested", sa.Boolean, nullable=False),
    sa.Column("result", sa.LargeBinary),
    sa.Column("result_blob", sa.String(64)),
    sa.Column("result_ttl_s", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, index=True),  # NULL until it is closed
    sa.Column("sandbox_s", sa.Float, nullable=False),
    sa.Column("num_fenced", sa.Integer, nullable=False),
    sa.Column("accepted_at", sa.Float),
    sa.Column("accepted", sa.LargeBinary),
    sa.Column("accepted_blob", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key", name="uq_tasks_idempotency"),
    sa.Index("ix_tasks_state_owner", "state", "owner"),
    sa.Index("ix_tasks_owner_created_at", "owner", "created_at"),
)

task_steps = sa.Table(
    "task_steps",
    metadata,
    sa.Column("task_id", sa.ForeignKey("tasks.id"), primary_key=True),
    sa.Column("step", sa.String(200), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("result", sa.LargeBinary),
    sa.Column("result_blob", sa.String(64)),
)

task_days = sa.Table(
    "task_days",
    metadata,
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),  # Unix time // 86400
    sa.Column("sandbox_s", sa.Float, nullable=False),
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)
