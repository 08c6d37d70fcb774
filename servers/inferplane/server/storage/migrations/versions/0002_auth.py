"""Users, sessions, signing keys and grants."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE auth.user_account (
        username text PRIMARY KEY,
        password_hash text NOT NULL,
        created_at timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE auth.login_failure (
        username text PRIMARY KEY,
        failures integer NOT NULL,
        window_start timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE auth.session (
        id uuid PRIMARY KEY,
        username text NOT NULL REFERENCES auth.user_account ON DELETE CASCADE,
        created_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        ended_at timestamptz
    )
    """,
    "CREATE INDEX ON auth.session (expires_at)",
    """
    CREATE TABLE auth.refresh_token (
        token_hash bytea PRIMARY KEY,
        session_id uuid NOT NULL REFERENCES auth.session ON DELETE CASCADE,
        issued_at timestamptz NOT NULL,
        used_at timestamptz
    )
    """,
    "CREATE INDEX ON auth.refresh_token (session_id)",
    """
    CREATE TABLE auth.signing_key (
        kid text PRIMARY KEY,
        private_jwk bytea NOT NULL,
        public_jwk jsonb NOT NULL,
        created_at timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE auth.role_grant (
        id uuid PRIMARY KEY,
        subject text NOT NULL,
        role text NOT NULL,
        scope text NOT NULL,
        created_at timestamptz NOT NULL,
        creator text NOT NULL,
        UNIQUE (subject, role, scope)
    )
    """,
    """
    CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON auth.role_grant
    FOR EACH STATEMENT EXECUTE FUNCTION policy.changed()
    """,
    "CREATE VIEW policy.grants AS SELECT subject, role, scope FROM auth.role_grant",
)

SERVICES = ("auth", "artifact", "inference", "reporting")


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON auth.user_account, auth.login_failure, auth.session,"
        " auth.refresh_token, auth.signing_key, auth.role_grant TO inferplane_auth"
    )
    for service in SERVICES:
        op.execute(f"GRANT SELECT ON policy.grants TO inferplane_{service}")
