"""Deployments and the routes compiled from them."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE inference.deployment (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        model text NOT NULL,
        version integer NOT NULL,
        digest text NOT NULL,
        size bigint NOT NULL,
        signature bytea NOT NULL,
        label_output text NOT NULL,
        state text NOT NULL CHECK (state IN ('LOADING', 'READY', 'FAILED')),
        state_message text NOT NULL,
        created_at timestamptz NOT NULL,
        creator text NOT NULL,
        deleted_at timestamptz
    )
    """,
    "CREATE UNIQUE INDEX deployment_name ON inference.deployment (name) WHERE deleted_at IS NULL",
    """
    CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON inference.deployment
    FOR EACH STATEMENT EXECUTE FUNCTION policy.changed()
    """,
    """
    CREATE VIEW policy.routes AS
    SELECT name AS deployment, model, version, digest, signature, label_output, state = 'READY' AS ready
    FROM inference.deployment WHERE deleted_at IS NULL
    """,
)

SERVICES = ("auth", "artifact", "inference", "reporting")


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON inference.deployment TO inferplane_inference")
    for service in SERVICES:
        op.execute(f"GRANT SELECT ON policy.routes TO inferplane_{service}")
