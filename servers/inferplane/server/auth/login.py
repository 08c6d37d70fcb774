"""The flows that open, continue and end sessions, each in its own units of work."""

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.auth import guesses
from inferplane.server.auth.devices import Devices
from inferplane.server.auth.passwords import Passwords
from inferplane.server.auth.repository import AuthReader, AuthRepository
from inferplane.server.auth.sessions import Session, Sessions
from inferplane.server.auth.tokens import AccessToken, SigningKeys, TokenIssuer, public_set
from inferplane.server.auth.turns import Turns
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.names import SESSION, USER, WORKLOAD
from inferplane.server.settings import ServiceName
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database, works_for_nobody
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tasks import start_task

__all__ = ["Attempt", "LoginFlow", "SignedIn"]

AUTH = Actor(WORKLOAD.format(ServiceName.AUTH))
JWKS_AGE = 2.0
"""Seconds; no verifier asks for an unknown key more often."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody who would sign in. `address` is where from; `device_token` what an earlier sign-in left there."""

    username: str
    password: str = field(repr=False)
    device_token: str = field(repr=False)
    address: str


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session, its access token, and the token of the device that it was opened on."""

    session: Session
    access_token: AccessToken
    device_token: str


class LoginFlow:
    """Login, refresh and logout."""

    def __init__(
        self,
        database: Database,
        units_of_work: UnitOfWorkFactory,
        sessions: Sessions,
        passwords: Passwords,
        keys: SigningKeys,
        devices: Devices,
    ) -> None:
        self._database = database
        self._units_of_work = units_of_work
        self._sessions = sessions
        self._passwords = passwords
        self._keys = keys
        self._devices = devices
        self._turns = Turns()
        self._issuer: TokenIssuer | None = None
        self._jwks = ""
        self._jwks_until = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def login(self, attempt: Attempt, actor: Actor) -> SignedIn:
        """Raises LOGIN_FAILED, RATE_LIMITED or OVERLOADED. No connection is held while the password is hashed."""
        device = self._devices.device_of(attempt.device_token, attempt.username)
        evaluate = partial(self._evaluate, attempt, device, actor)
        session = await self._turns.take(device, attempt.username, attempt.address, evaluate)
        token = await self._token(session)
        return SignedIn(session, token, self._devices.token(attempt.username, device))

    async def _evaluate(self, attempt: Attempt, device: str, actor: Actor) -> Session:
        username = attempt.username
        async with self._database.transaction() as connection:
            reader = AuthReader(connection)
            encoded = await reader.password_hash(username)
            resource = "users" if encoded is None else USER.format(username)
            refused = await guesses.charge(reader, username, device)
            if refused is not None:
                await reader.count_failed_sign_in(resource, now(), refused=1)
            await connection.commit()
        if refused is not None:
            raise refused
        if not await self._passwords.verify(encoded, attempt.password):
            async with self._database.transaction() as connection:
                await AuthReader(connection).count_failed_sign_in(resource, now(), failures=1)
                await connection.commit()
            raise InferplaneError(ErrorReason.ERROR_REASON_LOGIN_FAILED)
        async with self._units_of_work(actor) as unit:
            store = AuthRepository(unit)
            await store.refund_guess(username, device)
            session = await self._sessions.open(store, username)
            await unit.commit()
        return session

    async def refresh(self, refresh_token: str, actor: Actor) -> tuple[Session, AccessToken]:
        """Raises CREDENTIALS_INVALID, SESSION_ENDED or REFRESH_TOKEN_REUSED."""
        async with self._units_of_work(actor) as unit:
            outcome = await self._sessions.refresh(AuthRepository(unit), refresh_token)
            await unit.commit()
        if isinstance(outcome, InferplaneError):
            raise outcome
        return outcome, await self._token(outcome)

    async def logout(self, session_name: str, actor: Actor) -> None:
        """End the caller's session. Workloads have none."""
        if not session_name:
            return
        (session_id,) = SESSION.parse(session_name)
        async with self._units_of_work(actor) as unit:
            await self._sessions.end(AuthRepository(unit), UUID(session_id))
            await unit.commit()

    async def jwks(self) -> str:
        """The public keys, as a JSON Web Key Set; at most JWKS_AGE seconds old: anybody may ask, and often."""
        if time.monotonic() > self._jwks_until:
            if self._fetching is None:
                self._fetching = start_task(self._fetch_jwks())
            await asyncio.shield(self._fetching)
        return self._jwks

    async def _fetch_jwks(self) -> None:
        # For all who wait, and in the share of none of them.
        works_for_nobody()
        try:
            async with self._database.transaction() as connection:
                self._jwks = public_set(await AuthReader(connection).signing_keys())
            self._jwks_until = time.monotonic() + JWKS_AGE
        finally:
            self._fetching = None

    async def delete_expired(self) -> None:
        """Delete what is past its time."""
        async with self._database.transaction() as connection:
            await AuthReader(connection).delete_expired(now(), now() - guesses.WINDOW)
            await connection.commit()

    async def report_failed_sign_ins(self) -> None:
        """Tell the audit of the sign-ins that failed in minutes that are over: one event a minute and user."""
        async with self._units_of_work(AUTH) as unit:
            store = AuthRepository(unit)
            counts = await store.take_failed_sign_ins(now().replace(second=0, microsecond=0))
            for count in counts:
                store.record(
                    "session.login_failed",
                    count.resource,
                    minute=count.minute.isoformat(timespec="minutes"),
                    failures=count.failures,
                    refused=count.refused,
                )
            if counts:
                await unit.commit()

    async def ensure_signing_key(self) -> None:
        """Make the installation's first signing key if there is none; ValueError if it cannot be opened."""
        async with self._units_of_work(AUTH) as unit:
            store = AuthRepository(unit)
            await store.lock_signing_keys()
            present = await store.signing_keys()
            if present:
                # Now rather than at the first sign-in, which could say nothing to an operator.
                self._keys.open(present[0])
            else:
                key = self._keys.make()
                await store.add_signing_key(key)
                store.record("signing_key.create", f"signingKeys/{key.kid}")
                await unit.commit()

    async def _token(self, session: Session) -> AccessToken:
        if self._issuer is None:
            async with self._database.transaction() as connection:
                newest = (await AuthReader(connection).signing_keys())[0]
            self._issuer = TokenIssuer(self._keys.open(newest))
        return await self._issuer.issue(session.username, session.id, session.tokens_expire_at)
