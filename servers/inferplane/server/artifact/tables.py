"""Artifact's tables."""

import sqlalchemy as sa

__all__ = ["chunk", "metadata", "model", "model_alias", "model_version", "upload", "upload_chunk"]

metadata = sa.MetaData(schema="artifact")
_when = sa.DateTime(timezone=True)

model = sa.Table(
    "model",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("last_version", sa.Integer, nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
)
chunk = sa.Table(
    "chunk",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("written_at", _when, nullable=False),
)
upload = sa.Table(
    "upload",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("model", sa.ForeignKey(model.c.name), primary_key=True),
    sa.Column("committed_size", sa.BigInteger, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("active_at", _when, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
)
upload_chunk = sa.Table(
    "upload_chunk",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("upload_id", sa.Uuid, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("digest", sa.ForeignKey(chunk.c.digest), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(["model", "upload_id"], [upload.c.model, upload.c.id], ondelete="CASCADE"),
)
model_version = sa.Table(
    "model_version",
    metadata,
    sa.Column("model", sa.ForeignKey(model.c.name), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("upload_id", sa.Uuid, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("label_output", sa.Text, nullable=False),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
    sa.UniqueConstraint("model", "upload_id"),
    sa.ForeignKeyConstraint(["model", "upload_id"], [upload.c.model, upload.c.id]),
)
model_alias = sa.Table(
    "model_alias",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("updated_at", _when, nullable=False),
    sa.ForeignKeyConstraint(["model", "version"], [model_version.c.model, model_version.c.version]),
)
