"""Reporting's tables."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

__all__ = ["feedback", "metadata", "prediction"]

metadata = sa.MetaData(schema="reporting")
_when = sa.DateTime(timezone=True)
_name = sa.Text(collation="C")
_texts = postgresql.ARRAY(sa.Text)

prediction = sa.Table(
    "prediction",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("client_request_id", _name, nullable=False),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("deployment", _name, nullable=False),
    sa.Column("model", _name, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("digest", _name, nullable=False),
    sa.Column("requested_at", _when, nullable=False),
    sa.Column("latency_us", sa.BigInteger, nullable=False),
    sa.Column("status_code", sa.Integer, nullable=False),
    sa.Column("predicted_labels", _texts, nullable=False),
    sa.Column("row_count", sa.Integer, sa.Computed("cardinality(predicted_labels)"), nullable=False),
)
feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("prediction_id", sa.ForeignKey(prediction.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("labels", _texts, nullable=False),
    sa.Column("correct_count", sa.Integer, nullable=False),
    sa.Column("submitted_at", _when, nullable=False),
    sa.Column("submitter", sa.Text, nullable=False),
)
