"""Finds out who calls, from the call's metadata."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from inferplane.server.access.admission import Admission
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.pipeline import Interceptor

__all__ = ["authentication"]


def authentication(admission: Admission) -> Interceptor:
    """An interceptor that fills in the call's principal, for all but public methods."""

    @asynccontextmanager
    async def authenticate(call: Call) -> AsyncIterator[None]:
        metadata = call.take_metadata()
        if not call.method.access.public:
            call.principal = await admission.authenticate(metadata, lambda: call.peer)
            # Not its expiry: an upload may take longer than a token lives.
            call.rests_on(partial(admission.confirm_session, call.principal))
        yield

    return authenticate
