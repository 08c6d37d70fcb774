"""Guesses at a password: charged before they are evaluated, by user and device."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now

if TYPE_CHECKING:
    from inferplane.server.auth.repository import AuthReader

__all__ = ["MAX_GUESSES", "WINDOW", "FailedSignIns", "charge"]

MAX_GUESSES = 10
WINDOW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class FailedSignIns:
    """How many sign-ins failed in one minute: wrong passwords, and those refused unevaluated.

    `resource` is the user, or `users` for all names that are nobody's: else anybody could fill the audit with names.
    """

    minute: datetime
    resource: str
    failures: int
    refused: int


async def charge(store: "AuthReader", username: str, device: str) -> InferplaneError | None:
    """Count a guess; RATE_LIMITED where it must not be evaluated any more.

    The count is one statement, so that of guesses made at once no more than MAX_GUESSES are evaluated. It must be
    committed whatever becomes of the guess. One that is refused is not counted: nothing would take it back.
    """
    at = now()
    if await store.charge_guess(username, device, at, at - WINDOW, MAX_GUESSES):
        return None
    since = await store.guess_window_start(username, device) or at
    return InferplaneError(ErrorReason.ERROR_REASON_RATE_LIMITED, retry_after=_wait(since, at))


def _wait(since: datetime, at: datetime) -> float:
    """Seconds until the window that began at `since` is over."""
    return max((since + WINDOW - at).total_seconds(), 1.0)
