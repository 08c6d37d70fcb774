"""Prediction records and their labels."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Counted once, when it is written: a report over a million records must not read their label arrays.
    """
    CREATE TABLE reporting.prediction (
        id uuid PRIMARY KEY,
        client_request_id text NOT NULL,
        caller text NOT NULL,
        deployment text NOT NULL,
        model text NOT NULL,
        version integer NOT NULL,
        digest text NOT NULL,
        requested_at timestamptz NOT NULL,
        latency_us bigint NOT NULL,
        status_code integer NOT NULL,
        predicted_labels text[] NOT NULL,
        row_count integer NOT NULL GENERATED ALWAYS AS (cardinality(predicted_labels)) STORED
    )
    """,
    "CREATE INDEX ON reporting.prediction (model, requested_at)",
    # By status too: of the calls that carry one client request id, those that succeeded are looked at first.
    """
    CREATE INDEX ON reporting.prediction (deployment, client_request_id, status_code) WHERE client_request_id <> ''
    """,
    """
    CREATE TABLE reporting.feedback (
        prediction_id uuid PRIMARY KEY REFERENCES reporting.prediction ON DELETE CASCADE,
        labels text[] NOT NULL,
        correct_count integer NOT NULL,
        submitted_at timestamptz NOT NULL,
        submitter text NOT NULL
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    # Records and labels are facts: the service itself cannot change or delete one.
    op.execute("GRANT SELECT, INSERT ON reporting.prediction, reporting.feedback TO inferplane_reporting")
