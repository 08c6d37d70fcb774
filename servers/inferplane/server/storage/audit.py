"""The audit table: insert-only for every service."""

from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

__all__ = ["Actor", "AuditEvent", "audit_event"]

metadata = sa.MetaData(schema="reporting")

audit_event = sa.Table(
    "audit_event",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("service", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("on_behalf_of", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("resource", sa.Text, nullable=False),
    sa.Column("detail", postgresql.JSONB, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does what is recorded, and in which request."""

    subject: str
    request_id: str = ""
    on_behalf_of: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that was done. `detail` holds no secrets."""

    action: str
    resource: str
    detail: dict[str, str | int] = field(default_factory=dict)
