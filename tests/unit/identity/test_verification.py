"""Workload tokens, from signer to verifier."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt

from inferplane.server.access.credentials import bearer_token
from inferplane.server.errors import InferplaneError
from inferplane.server.identity import verification
from inferplane.server.identity import workloads as workload_identity
from inferplane.server.identity.verification import JwksCache, Verifier
from inferplane.server.identity.workloads import WorkloadSigner, load_workload_keys
from inferplane.server.rpc.errors import reason_name
from inferplane.server.settings import ServiceName


async def no_keys() -> str:
    raise ConnectionError


@pytest.fixture
def verifier(keys_dir: Path) -> Verifier:
    return Verifier(JwksCache(no_keys), load_workload_keys(keys_dir), ServiceName.ARTIFACT)


def token(keys_dir: Path, on_behalf_of: str = "") -> str:
    signer = WorkloadSigner(keys_dir, ServiceName.INFERENCE)
    return bearer_token(signer.metadata(ServiceName.ARTIFACT, on_behalf_of))


async def test_the_original_caller_travels_along(verifier: Verifier, keys_dir: Path) -> None:
    principal = await verifier.verify(token(keys_dir, "users/alice"))
    assert (principal.workload, principal.on_behalf_of) == ("inference", "users/alice")


async def test_a_workload_token_of_longer_life_is_refused(
    verifier: Verifier, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_identity, "LIFETIME", 3600)
    with pytest.raises(InferplaneError) as refused:
        await verifier.verify(token(keys_dir))
    assert reason_name(refused.value.reason) == "CREDENTIALS_INVALID"


async def test_without_auths_keys_access_tokens_wait_and_workload_tokens_do_not(
    verifier: Verifier, keys_dir: Path
) -> None:
    await verifier.verify(token(keys_dir))
    access = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.e30.x"
    with pytest.raises(InferplaneError) as waiting:
        await verifier.verify(access)
    assert reason_name(waiting.value.reason) == "DEPENDENCY_UNAVAILABLE"


def test_no_private_key_is_among_the_public_ones(keys_dir: Path) -> None:
    assert '"d"' not in (keys_dir / "workloads.jwks").read_text()
    assert {path.stat().st_mode & 0o777 for path in keys_dir.iterdir()} == {0o600}


async def test_a_token_does_not_wait_behind_those_that_somebody_else_forges(
    verifier: Verifier, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    decode = jwt.decode

    def slowly(text: str, *arguments: Any) -> Any:
        time.sleep(0.01)
        verified.append(text)
        return decode(text, *arguments)

    monkeypatch.setattr(jwt, "decode", slowly)
    forged = [asyncio.ensure_future(verifier.verify(token(keys_dir), lambda: "mallory")) for _ in range(300)]
    await asyncio.sleep(0)
    await verifier.verify(token(keys_dir), lambda: "alice")
    assert len(verified) < 20
    for task in forged:
        task.cancel()
    await asyncio.gather(*forged, return_exceptions=True)


async def test_a_token_that_comes_with_many_calls_at_once_is_verified_for_all_of_them(
    verifier: Verifier, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    decode = jwt.decode

    def counted(text: str, *arguments: Any) -> Any:
        verified.append(text)
        return decode(text, *arguments)

    monkeypatch.setattr(jwt, "decode", counted)
    good = token(keys_dir)
    principals = await asyncio.gather(*(verifier.verify(good) for _ in range(3000)))
    assert {principal.workload for principal in principals} == {"inference"}
    assert len(verified) <= verification.THREADS


async def test_work_of_others_does_not_wait_behind_forged_tokens(
    verifier: Verifier, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def decode(*_arguments: Any) -> None:
        done.wait(30)
        raise ValueError

    monkeypatch.setattr(jwt, "decode", decode)
    forged = [asyncio.ensure_future(verifier.verify(token(keys_dir))) for _ in range(100)]
    try:
        # All of them are under way when their tasks have run once.
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 10) == "done"
    finally:
        done.set()
        await asyncio.gather(*forged, return_exceptions=True)
