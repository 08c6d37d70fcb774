"""Inference's tables."""

import sqlalchemy as sa

__all__ = ["deployment", "metadata", "other_target"]

metadata = sa.MetaData(schema="inference")
_when = sa.DateTime(timezone=True)

deployment = sa.Table(
    "deployment",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text(collation="C"), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("label_output", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_message", sa.Text, nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
    sa.Column("deleted_at", _when),
    sa.Column("requested_at", _when, nullable=False),
)

other_target = sa.Table(
    "other_target",
    metadata,
    sa.Column("deployment_id", sa.Uuid, sa.ForeignKey(deployment.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("label_output", sa.Text, nullable=False),
    sa.Column("requested_at", _when, nullable=False),
    sa.Column("problem", sa.Text, nullable=False),
)
