"""Policy in parts, guesses by device, refresh tokens that know their successor, and audit events as canonical bytes."""

from typing import Any
from uuid import UUID

from alembic import op
from sqlalchemy import Connection, text

from inferplane.reporting.v1.audit_event_pb2 import AuditEvent

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SERVICES = ("auth", "artifact", "inference", "reporting")
BATCH = 1000

# The oldest release that works with this schema, by the version that it came with. A migration that old workers can
# live through leaves it; one that they cannot sets it to its own version.
COMPATIBILITY = (
    "CREATE TABLE public.schema_compatibility (minimum text NOT NULL)",
    "INSERT INTO public.schema_compatibility (minimum) VALUES ('0007')",
)

PARTS = (
    'ALTER TABLE policy.revision ADD COLUMN part text COLLATE "C"',
    "UPDATE policy.revision SET part = 'grants'",
    "ALTER TABLE policy.revision ADD PRIMARY KEY (part)",
    """
    INSERT INTO policy.revision (part, revision)
    SELECT more.part, revision FROM policy.revision, (VALUES ('deployments'), ('revoked')) AS more (part)
    """,
    # A trigger names the part that it is for; one that names none is for all.
    """
    CREATE OR REPLACE FUNCTION policy.changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
    BEGIN
        UPDATE policy.revision SET revision = revision + 1 WHERE TG_NARGS = 0 OR part = TG_ARGV[0];
        PERFORM pg_catalog.pg_notify('policy_changed', '');
        RETURN NULL;
    END $$
    """,
)

SESSIONS = (
    # Until when a session that ends must be remembered: so long its access tokens live.
    "ALTER TABLE auth.session ADD COLUMN tokens_expire_at timestamptz",
    "UPDATE auth.session SET tokens_expire_at = expires_at",
    "ALTER TABLE auth.session ALTER COLUMN tokens_expire_at SET NOT NULL",
    "CREATE INDEX session_revoked ON auth.session (tokens_expire_at) WHERE ended_at IS NOT NULL",
    """
    CREATE TRIGGER policy_changed AFTER UPDATE OF ended_at ON auth.session
    FOR EACH STATEMENT EXECUTE FUNCTION policy.changed('revoked')
    """,
    # A minute longer than that: tokens are judged by the services' clocks, this by the database's.
    """
    CREATE VIEW policy.revoked AS
    SELECT 'sessions/' || CAST(id AS text) AS session FROM auth.session
    WHERE ended_at IS NOT NULL AND tokens_expire_at > now() - interval '1 minute'
    """,
    # The next token, encrypted with a key that only the token itself gives.
    "ALTER TABLE auth.refresh_token ADD COLUMN successor bytea",
)

SIGN_INS = (
    "DROP TABLE auth.login_failure",
    # Guesses by device; all devices that are not known share the empty one.
    """
    CREATE TABLE auth.login_attempt (
        username text COLLATE "C" NOT NULL,
        device text COLLATE "C" NOT NULL,
        attempts integer NOT NULL,
        window_start timestamptz NOT NULL,
        PRIMARY KEY (username, device)
    )
    """,
    "CREATE INDEX ON auth.login_attempt (window_start)",
    # Failed sign-ins that no audit event tells of yet.
    """
    CREATE TABLE auth.failed_sign_in (
        minute timestamptz NOT NULL,
        resource text COLLATE "C" NOT NULL,
        failures integer NOT NULL,
        refused integer NOT NULL,
        PRIMARY KEY (minute, resource)
    )
    """,
    "GRANT SELECT, INSERT, UPDATE, DELETE ON auth.login_attempt, auth.failed_sign_in TO inferplane_auth",
)

COLLATIONS = (
    # The order that Python and page tokens know, whatever the database's own. The view comes back as it was.
    "DROP VIEW policy.grants",
    'ALTER TABLE auth.user_account ALTER COLUMN username TYPE text COLLATE "C"',
    'ALTER TABLE auth.session ALTER COLUMN username TYPE text COLLATE "C"',
    """
    ALTER TABLE auth.role_grant
        ALTER COLUMN subject TYPE text COLLATE "C",
        ALTER COLUMN role TYPE text COLLATE "C",
        ALTER COLUMN scope TYPE text COLLATE "C"
    """,
    "CREATE VIEW policy.grants AS SELECT subject, role, scope FROM auth.role_grant",
)

AUDIT = (
    "ALTER TABLE reporting.audit_event DROP COLUMN on_behalf_of, DROP COLUMN request_id, DROP COLUMN detail",
    """
    ALTER TABLE reporting.audit_event
        ALTER COLUMN event SET NOT NULL,
        ALTER COLUMN service TYPE text COLLATE "C",
        ALTER COLUMN actor TYPE text COLLATE "C",
        ALTER COLUMN action TYPE text COLLATE "C",
        ALTER COLUMN resource TYPE text COLLATE "C"
    """,
)


def upgrade() -> None:
    # What takes longest comes first, while nobody waits for the locks of policy and sign-ins, which calls need.
    op.execute("ALTER TABLE reporting.audit_event ADD COLUMN event bytea")
    convert_events(op.get_bind())
    for statement in (*AUDIT, *COMPATIBILITY, *PARTS, *SESSIONS, *SIGN_INS, *COLLATIONS):
        op.execute(statement)
    name_part("grants", "auth.role_grant")
    name_part("deployments", "inference.deployment")
    name_part("deployments", "inference.other_target")
    for service in SERVICES:
        op.execute(f"GRANT SELECT ON public.schema_compatibility TO inferplane_{service}")
        op.execute(f"GRANT SELECT ON policy.grants, policy.revoked TO inferplane_{service}")


def name_part(part: str, table: str) -> None:
    op.execute(f"DROP TRIGGER policy_changed ON {table}")
    op.execute(
        f"""
        CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION policy.changed('{part}')
        """
    )


def convert_events(connection: Connection) -> None:
    """Write all events as bytes, in batches by id."""
    columns = "id, occurred_at, service, actor, on_behalf_of, request_id, action, resource, detail"
    found = text(
        f"SELECT {columns} FROM reporting.audit_event WHERE id > :last ORDER BY id LIMIT {BATCH}"  # noqa: S608 - constants
    )
    written = text(
        """
        UPDATE reporting.audit_event SET event = converted.event
        FROM unnest(CAST(:ids AS uuid[]), CAST(:events AS bytea[])) AS converted (id, event)
        WHERE audit_event.id = converted.id
        """
    )
    last = UUID(int=0)
    while rows := connection.execute(found, {"last": last}).all():
        events = [event_bytes(row) for row in rows]
        connection.execute(written, {"ids": [row.id for row in rows], "events": events})
        last = rows[-1].id


def event_bytes(row: Any) -> bytes:
    event = AuditEvent(id=str(row.id), service=row.service, actor=row.actor, on_behalf_of=row.on_behalf_of)
    event.time.FromDatetime(row.occurred_at)
    event.request_id, event.action, event.resource = row.request_id, row.action, row.resource
    for name, value in sorted(row.detail.items()):
        kind = "number" if isinstance(value, int) else "text"
        event.changes.add(field=name, after=AuditEvent.Value(**{kind: value}))
    return event.SerializeToString(deterministic=True)
