"""Models, versions, aliases, uploads and the chunks of their bytes."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Names are listed in the order of their bytes, whatever the database's own collation.
    """
    CREATE TABLE artifact.model (
        name text COLLATE "C" PRIMARY KEY,
        description text NOT NULL,
        last_version integer NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL,
        creator text NOT NULL
    )
    """,
    # Every chunk that may be in the store, from before it is written until after it is removed.
    """
    CREATE TABLE artifact.chunk (
        digest text COLLATE "C" PRIMARY KEY,
        written_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX ON artifact.chunk (written_at)",
    """
    CREATE TABLE artifact.upload (
        id uuid NOT NULL,
        model text COLLATE "C" NOT NULL REFERENCES artifact.model,
        committed_size bigint NOT NULL,
        complete boolean NOT NULL,
        digest text NOT NULL,
        created_at timestamptz NOT NULL,
        active_at timestamptz NOT NULL,
        creator text NOT NULL,
        PRIMARY KEY (model, id)
    )
    """,
    "CREATE INDEX ON artifact.upload (active_at) WHERE NOT complete",
    # The bytes of an upload are its chunks in order; all but the last of a complete one are of the same size.
    """
    CREATE TABLE artifact.upload_chunk (
        model text COLLATE "C" NOT NULL,
        upload_id uuid NOT NULL,
        position integer NOT NULL,
        digest text COLLATE "C" NOT NULL REFERENCES artifact.chunk,
        size integer NOT NULL,
        PRIMARY KEY (model, upload_id, position),
        FOREIGN KEY (model, upload_id) REFERENCES artifact.upload (model, id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ON artifact.upload_chunk (digest)",
    """
    CREATE TABLE artifact.model_version (
        model text COLLATE "C" NOT NULL REFERENCES artifact.model,
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
        model text COLLATE "C" NOT NULL,
        alias text COLLATE "C" NOT NULL,
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
        " artifact.chunk, artifact.model_alias TO inferplane_artifact"
    )
