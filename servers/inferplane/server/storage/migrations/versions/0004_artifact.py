"""Models, versions, aliases, uploads and the chunks of their bytes."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE artifact.model (
        name text PRIMARY KEY,
        description text NOT NULL,
        last_version integer NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL,
        creator text NOT NULL
    )
    """,
    # A blob's bytes: chunks of 16 MiB, each stored under its own digest.
    """
    CREATE TABLE artifact.upload (
        id uuid NOT NULL,
        model text NOT NULL REFERENCES artifact.model,
        committed_size bigint NOT NULL,
        complete boolean NOT NULL,
        digest text NOT NULL,
        created_at timestamptz NOT NULL,
        creator text NOT NULL,
        PRIMARY KEY (model, id)
    )
    """,
    """
    CREATE TABLE artifact.upload_chunk (
        model text NOT NULL,
        upload_id uuid NOT NULL,
        position integer NOT NULL,
        digest text NOT NULL,
        size integer NOT NULL,
        PRIMARY KEY (model, upload_id, position),
        FOREIGN KEY (model, upload_id) REFERENCES artifact.upload (model, id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE artifact.model_version (
        model text NOT NULL REFERENCES artifact.model,
        version integer NOT NULL,
        upload_id uuid NOT NULL,
        digest text NOT NULL,
        size bigint NOT NULL,
        format text NOT NULL,
        signature bytea NOT NULL,
        label_output text NOT NULL,
        created_at timestamptz NOT NULL,
        creator text NOT NULL,
        PRIMARY KEY (model, version),
        UNIQUE (model, upload_id),
        FOREIGN KEY (model, upload_id) REFERENCES artifact.upload (model, id)
    )
    """,
    """
    CREATE TABLE artifact.model_alias (
        model text NOT NULL,
        alias text NOT NULL,
        version integer NOT NULL,
        updated_at timestamptz NOT NULL,
        PRIMARY KEY (model, alias),
        FOREIGN KEY (model, version) REFERENCES artifact.model_version (model, version)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    # Versions are immutable: the service itself cannot change or delete one.
    op.execute("GRANT SELECT, INSERT ON artifact.model_version TO inferplane_artifact")
    op.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON artifact.model, artifact.upload, artifact.upload_chunk,"
        " artifact.model_alias TO inferplane_artifact"
    )
