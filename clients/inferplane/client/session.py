"""The session of one client: which access token the next call carries, and how it is renewed."""

import asyncio
from collections.abc import Awaitable, Callable

from inferplane.client.errors import InferplaneClientError, Unauthenticated
from inferplane.client.tokens import Tokens, TokenStore


class Session:
    """Hands out the access token and refreshes it, once for all coroutines and processes that wait for it.

    A refresh token is good for one use, and a late second use ends the session. So at most one refresh is under
    way in this client, the store's lock keeps other processes out, and a refresh that has begun is carried
    through even when the call that asked for it is cancelled.
    """

    def __init__(self, store: TokenStore, refresh: Callable[[str], Awaitable[Tokens]]) -> None:
        self._store = store
        self._refresh = refresh
        self._tokens: Tokens | None = None
        self._lock = asyncio.Lock()
        self._renewals: set[asyncio.Task[str]] = set()

    async def access_token(self) -> str | None:
        """Give a token good for the next call, refreshing it shortly before it expires; None if logged out."""
        tokens = self._tokens or await self._store.load()
        if tokens is None:
            return None
        self._tokens = tokens
        if not (tokens.refresh_token and tokens.expires_soon()):
            return tokens.access_token
        try:
            return await self.renew(tokens.access_token)
        except Unauthenticated:
            raise
        except InferplaneClientError:
            # Auth being away or busy does not stop calls to the other services while the token still is good.
            if tokens.expired():
                raise
            return tokens.access_token

    async def renew(self, stale: str) -> str:
        """Give a newer access token than `stale`; raises Unauthenticated where the session is over."""
        renewal = asyncio.create_task(self._renew(stale))
        self._renewals.add(renewal)
        renewal.add_done_callback(self._renewed)
        return await asyncio.shield(renewal)

    async def replace(self, tokens: Tokens | None) -> None:
        """Begin another session, or none."""
        async with self._lock, self._store.exclusive():
            await self._store.save(tokens)
            self._tokens = tokens

    async def begin(self, tokens: Tokens, username: str, device_token: str) -> None:
        """Begin the session of a user who has just signed in; remember this device for the next time."""
        async with self._lock, self._store.exclusive():
            if device_token:
                await self._store.save_device(username, device_token)
            await self._store.save(tokens)
            self._tokens = tokens

    async def device_token(self, username: str) -> str:
        """Give what the user's last sign-in left here; empty where there was none."""
        return await self._store.load_device(username)

    async def close(self) -> None:
        """Wait for a refresh under way: its answer would be lost otherwise, and the session with it."""
        await asyncio.gather(*self._renewals, return_exceptions=True)

    def _renewed(self, renewal: asyncio.Task[str]) -> None:
        self._renewals.discard(renewal)
        # Whoever waited may be gone, and asyncio complains of errors that nobody looked at.
        if not renewal.cancelled():
            renewal.exception()

    async def _renew(self, stale: str) -> str:
        async with self._lock:
            if self._tokens is not None and self._tokens.access_token != stale:
                return self._tokens.access_token
            async with self._store.exclusive():
                saved = await self._store.load()
                if saved is None:
                    self._tokens = None
                    raise Unauthenticated("logged out meanwhile", reason="SESSION_ENDED")
                if saved.access_token == stale or saved.expires_soon():
                    saved = await self._exchange(saved)
                self._tokens = saved
                return saved.access_token

    async def _exchange(self, tokens: Tokens) -> Tokens:
        if not tokens.refresh_token:
            raise Unauthenticated("the access token has expired", reason="TOKEN_EXPIRED")
        try:
            renewed = await self._refresh(tokens.refresh_token)
        except Unauthenticated:
            await self._store.save(None)
            self._tokens = None
            raise
        await self._store.save(renewed)
        return renewed
