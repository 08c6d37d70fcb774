"""The flows that open, continue and end sessions, each in its own units of work."""

from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.auth.passwords import Passwords
from inferplane.server.auth.repository import AuthReader, AuthRepository
from inferplane.server.auth.sessions import FAILURE_WINDOW, Session, Sessions
from inferplane.server.auth.tokens import AccessToken, SigningKeys, TokenIssuer, public_set
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.names import SESSION
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

__all__ = ["LoginFlow"]


class LoginFlow:
    """Login, refresh and logout."""

    def __init__(
        self,
        database: Database,
        units_of_work: UnitOfWorkFactory,
        sessions: Sessions,
        passwords: Passwords,
        keys: SigningKeys,
        token_lifetime: float,
    ) -> None:
        self._database = database
        self._units_of_work = units_of_work
        self._sessions = sessions
        self._passwords = passwords
        self._keys = keys
        self._token_lifetime = token_lifetime
        self._issuer: TokenIssuer | None = None

    async def login(self, username: str, password: str, actor: Actor) -> tuple[Session, AccessToken]:
        """Raises LOGIN_FAILED or RATE_LIMITED. No connection is held while the password is hashed."""
        async with self._units_of_work(actor) as unit:
            store = AuthRepository(unit)
            await self._sessions.check_throttle(store, username)
            encoded = await store.password_hash(username)
        right = await self._passwords.verify(encoded, password)
        async with self._units_of_work(actor) as unit:
            store = AuthRepository(unit)
            if not right:
                await self._sessions.fail_login(store, username)
                await unit.commit()
                raise InferplaneError(ErrorReason.ERROR_REASON_LOGIN_FAILED)
            session = await self._sessions.open(store, username)
            await unit.commit()
        return session, await self._token(session)

    async def refresh(self, refresh_token: str, actor: Actor) -> tuple[Session, AccessToken]:
        """Raises CREDENTIALS_INVALID, SESSION_ENDED or REFRESH_TOKEN_REUSED."""
        async with self._units_of_work(actor) as unit:
            outcome = await self._sessions.refresh(AuthRepository(unit), refresh_token)
            await unit.commit()
        if isinstance(outcome, InferplaneError):
            raise outcome
        return outcome, await self._token(outcome)

    async def logout(self, session_name: str, actor: Actor) -> None:
        """End the caller's session."""
        (session_id,) = SESSION.parse(session_name)
        async with self._units_of_work(actor) as unit:
            await self._sessions.end(AuthRepository(unit), UUID(session_id))
            await unit.commit()

    async def jwks(self) -> str:
        """The public keys, as a JSON Web Key Set."""
        async with self._database.transaction() as connection:
            return public_set(await AuthReader(connection).signing_keys())

    async def forget_expired(self) -> None:
        """Delete what is past its time."""
        async with self._database.transaction() as connection:
            await AuthReader(connection).forget_expired(now(), now() - FAILURE_WINDOW)
            await connection.commit()

    async def ensure_signing_key(self) -> None:
        """Make the installation's first signing key if there is none."""
        async with self._units_of_work(Actor("workloads/auth")) as unit:
            store = AuthRepository(unit)
            await store.lock_signing_keys()
            if not await store.signing_keys():
                key = self._keys.make()
                await store.add_signing_key(key)
                store.record("signing_key.create", f"signingKeys/{key.kid}")
                await unit.commit()

    async def _token(self, session: Session) -> AccessToken:
        if self._issuer is None:
            async with self._database.transaction() as connection:
                newest = (await AuthReader(connection).signing_keys())[0]
            self._issuer = TokenIssuer(self._keys.open(newest), self._token_lifetime)
        return await self._issuer.issue(session.username, session.id)
