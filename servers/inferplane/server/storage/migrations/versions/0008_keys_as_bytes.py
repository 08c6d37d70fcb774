"""Keys and what is sorted by, in the order of their bytes."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SERVICES = ("auth", "artifact", "inference", "reporting")

# In another order, an upgrade of the database's system may leave an index that does not find what it holds any more.
STATEMENTS = (
    *(
        f"""
        ALTER TABLE {service}.idempotency_record
            ALTER COLUMN caller TYPE text COLLATE "C",
            ALTER COLUMN method TYPE text COLLATE "C",
            ALTER COLUMN key TYPE text COLLATE "C"
        """
        for service in SERVICES
    ),
    'ALTER TABLE auth.signing_key ALTER COLUMN kid TYPE text COLLATE "C"',
    # Makes two indexes anew; the rows stay as they are.
    """
    ALTER TABLE reporting.prediction
        ALTER COLUMN client_request_id TYPE text COLLATE "C",
        ALTER COLUMN deployment TYPE text COLLATE "C",
        ALTER COLUMN model TYPE text COLLATE "C",
        ALTER COLUMN digest TYPE text COLLATE "C"
    """,
    # What was known of these columns is forgotten with their order.
    "ANALYZE reporting.prediction",
)


def upgrade() -> None:
    # Each by itself, so that services which run meanwhile never wait for one table while they hold another.
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            op.execute(statement)
