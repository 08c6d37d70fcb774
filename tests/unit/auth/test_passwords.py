"""Evaluations of passwords that fail as none should."""

from typing import Any

import pytest

from inferplane.server.auth.passwords import Passwords
from inferplane.server.tasks import ContainedError


class Hasher:
    """Ends as it is told to."""

    memory_cost = 1

    def __init__(self, end: BaseException) -> None:
        self._end = end

    def hash(self, _password: str) -> str:
        raise self._end

    def verify(self, _encoded: str, _password: str) -> bool:
        raise self._end


@pytest.fixture(params=[SystemExit(3), KeyboardInterrupt()], ids=repr)
def passwords(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Passwords:
    passwords = Passwords()
    hasher: Any = Hasher(request.param)
    monkeypatch.setattr(passwords, "_hasher", hasher)
    return passwords


async def test_a_hashing_that_would_end_the_process_fails_its_caller_alone(passwords: Passwords) -> None:
    with pytest.raises(ContainedError):
        await passwords.hash("secret")


async def test_a_verification_that_would_end_the_process_lets_nobody_in_and_holds_nothing(passwords: Passwords) -> None:
    with pytest.raises(ContainedError):
        await passwords.verify("encoded", "secret")
    assert passwords.held == 0
