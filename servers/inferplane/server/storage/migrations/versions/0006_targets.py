"""The targets of a deployment beside the one that it serves, and names in one order everywhere."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SERVICES = ("auth", "artifact", "inference", "reporting")

STATEMENTS = (
    # Routes depend on the column whose collation changes; they come back as they were.
    "DROP VIEW policy.routes",
    # The order that Python and page tokens know, whatever the database's own.
    'ALTER TABLE inference.deployment ALTER COLUMN name TYPE text COLLATE "C"',
    "ALTER TABLE inference.deployment ADD COLUMN requested_at timestamptz NOT NULL DEFAULT now()",
    """
    CREATE VIEW policy.routes AS
    SELECT name AS deployment, model, version, digest, signature, label_output, state = 'READY' AS ready
    FROM inference.deployment WHERE deleted_at IS NULL
    """,
    # The target that serves stays in `deployment`, where workers of the release before look for it. INCOMING shall
    # take its place; FORMER did, or was to be, and may still answer a call.
    """
    CREATE TABLE inference.other_target (
        deployment_id uuid NOT NULL REFERENCES inference.deployment (id) ON DELETE CASCADE,
        version integer NOT NULL,
        role text NOT NULL CHECK (role IN ('INCOMING', 'FORMER')),
        digest text NOT NULL,
        size bigint NOT NULL,
        signature bytea NOT NULL,
        label_output text NOT NULL,
        requested_at timestamptz NOT NULL DEFAULT now(),
        problem text NOT NULL DEFAULT '',
        PRIMARY KEY (deployment_id, version)
    )
    """,
    "CREATE UNIQUE INDEX other_target_incoming ON inference.other_target (deployment_id) WHERE role = 'INCOMING'",
    """
    CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON inference.other_target
    FOR EACH STATEMENT EXECUTE FUNCTION policy.changed()
    """,
    """
    CREATE VIEW policy.other_targets AS
    SELECT d.name AS deployment, d.model, t.version, t.digest, t.signature, t.label_output
    FROM inference.other_target t JOIN inference.deployment d ON d.id = t.deployment_id WHERE d.deleted_at IS NULL
    """,
    "GRANT SELECT, INSERT, UPDATE, DELETE ON inference.other_target TO inferplane_inference",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    for service in SERVICES:
        op.execute(f"GRANT SELECT ON policy.routes, policy.other_targets TO inferplane_{service}")
