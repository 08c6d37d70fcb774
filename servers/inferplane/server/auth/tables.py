"""Auth's tables."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

__all__ = ["login_failure", "metadata", "refresh_token", "role_grant", "session", "signing_key", "user_account"]

metadata = sa.MetaData(schema="auth")
_when = sa.DateTime(timezone=True)

user_account = sa.Table(
    "user_account",
    metadata,
    sa.Column("username", sa.Text, primary_key=True),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("created_at", _when, nullable=False),
)
login_failure = sa.Table(
    "login_failure",
    metadata,
    sa.Column("username", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("window_start", _when, nullable=False),
)
session = sa.Table(
    "session",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("username", sa.ForeignKey(user_account.c.username, ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("expires_at", _when, nullable=False),
    sa.Column("ended_at", _when),
)
refresh_token = sa.Table(
    "refresh_token",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("session_id", sa.ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    sa.Column("issued_at", _when, nullable=False),
    sa.Column("used_at", _when),
)
signing_key = sa.Table(
    "signing_key",
    metadata,
    sa.Column("kid", sa.Text, primary_key=True),
    sa.Column("private_jwk", sa.LargeBinary, nullable=False),
    sa.Column("public_jwk", postgresql.JSONB, nullable=False),
    sa.Column("created_at", _when, nullable=False),
)
role_grant = sa.Table(
    "role_grant",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
    sa.UniqueConstraint("subject", "role", "scope"),
)
