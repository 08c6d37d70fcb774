"""Roles, schemas, the audit table, stored answers and the policy schema."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERVICES = ("auth", "artifact", "inference", "reporting")

POLICY = (
    "CREATE SCHEMA policy",
    # A row and not a sequence: a sequence moves before the change that moved it is visible.
    "CREATE TABLE policy.revision (revision bigint NOT NULL)",
    "INSERT INTO policy.revision VALUES (1)",
    # Each statement that changes policy counts the revision up and wakes the listeners when it commits.
    """
    CREATE FUNCTION policy.changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
    BEGIN
        UPDATE policy.revision SET revision = revision + 1;
        PERFORM pg_catalog.pg_notify('policy_changed', '');
        RETURN NULL;
    END $$
    """,
    "REVOKE ALL ON FUNCTION policy.changed() FROM PUBLIC",
)

AUDIT = """
    CREATE TABLE reporting.audit_event (
        id uuid PRIMARY KEY,
        occurred_at timestamptz NOT NULL,
        service text NOT NULL,
        actor text NOT NULL,
        on_behalf_of text NOT NULL,
        request_id text NOT NULL,
        action text NOT NULL,
        resource text NOT NULL,
        detail jsonb NOT NULL
    )
"""


def upgrade() -> None:
    op.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    op.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    for service in SERVICES:
        create_role_and_schema(service)
    for statement in (*POLICY, AUDIT):
        op.execute(statement)
    for service in SERVICES:
        role = f"inferplane_{service}"
        op.execute(f"GRANT USAGE ON SCHEMA policy TO {role}")
        op.execute(f"GRANT SELECT ON policy.revision TO {role}")
        op.execute(f"GRANT USAGE ON SCHEMA reporting TO {role}")
        op.execute(f"GRANT INSERT ON reporting.audit_event TO {role}")
        op.execute(f"GRANT SELECT ON public.alembic_version TO {role}")


def create_role_and_schema(service: str) -> None:
    role = f"inferplane_{service}"
    # Roles belong to the whole cluster: another database of it may have made them.
    op.execute(
        f"""
        DO $$ BEGIN
            CREATE ROLE {role} NOLOGIN;
        EXCEPTION WHEN duplicate_object THEN NULL;
        END $$
        """
    )
    op.execute(f"GRANT {role} TO CURRENT_USER")
    op.execute(f"CREATE SCHEMA {service}")
    op.execute(f"GRANT USAGE ON SCHEMA {service} TO {role}")
    op.execute(
        f"""
        CREATE TABLE {service}.idempotency_record (
            caller text NOT NULL,
            method text NOT NULL,
            key text NOT NULL,
            fingerprint bytea NOT NULL,
            answer bytea,
            created_at timestamptz NOT NULL,
            PRIMARY KEY (caller, method, key)
        )
        """
    )
    op.execute(f"CREATE INDEX ON {service}.idempotency_record (created_at)")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {service}.idempotency_record TO {role}")
