"""Auth's tables."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

__all__ = [
    "failed_sign_in", "login_attempt", "metadata", "refresh_token", "role_grant", "session", "signing_key",
    "user_account",
]  # fmt: skip

metadata = sa.MetaData(schema="auth")
_when = sa.DateTime(timezone=True)
_name = sa.Text(collation="C")

user_account = sa.Table(
    "user_account",
    metadata,
    sa.Column("username", _name, primary_key=True),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("created_at", _when, nullable=False),
)
login_attempt = sa.Table(
    "login_attempt",
    metadata,
    sa.Column("username", _name, primary_key=True),
    sa.Column("device", _name, primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("window_start", _when, nullable=False),
)
failed_sign_in = sa.Table(
    "failed_sign_in",
    metadata,
    sa.Column("minute", _when, primary_key=True),
    sa.Column("resource", _name, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("refused", sa.Integer, nullable=False),
)
session = sa.Table(
    "session",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("username", sa.ForeignKey(user_account.c.username, ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("expires_at", _when, nullable=False),
    sa.Column("ended_at", _when),
    sa.Column("tokens_expire_at", _when, nullable=False),
)
refresh_token = sa.Table(
    "refresh_token",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("session_id", sa.ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    sa.Column("issued_at", _when, nullable=False),
    sa.Column("used_at", _when),
    sa.Column("successor", sa.LargeBinary),
)
signing_key = sa.Table(
    "signing_key",
    metadata,
    sa.Column("kid", _name, primary_key=True),
    sa.Column("private_jwk", sa.LargeBinary, nullable=False),
    sa.Column("public_jwk", postgresql.JSONB, nullable=False),
    sa.Column("created_at", _when, nullable=False),
)
role_grant = sa.Table(
    "role_grant",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("subject", _name, nullable=False),
    sa.Column("role", _name, nullable=False),
    sa.Column("scope", _name, nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
    sa.UniqueConstraint("subject", "role", "scope"),
)
