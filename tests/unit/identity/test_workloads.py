"""A service's own tokens."""

import time
from pathlib import Path

import pytest

from inferplane.server.identity.workloads import REUSE, WorkloadSigner
from inferplane.server.settings import ServiceName


def test_a_token_is_used_again_for_a_while(keys_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer, begun = WorkloadSigner(keys_dir, ServiceName.INFERENCE), time.time()
    first = signer.metadata(ServiceName.ARTIFACT)
    monkeypatch.setattr(time, "time", lambda: begun + REUSE / 2)
    assert signer.metadata(ServiceName.ARTIFACT) == first
    monkeypatch.setattr(time, "time", lambda: begun + REUSE + 5)
    assert signer.metadata(ServiceName.ARTIFACT) != first


def test_a_token_of_the_future_is_not_used(keys_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer, begun = WorkloadSigner(keys_dir, ServiceName.INFERENCE), time.time()
    first = signer.metadata(ServiceName.ARTIFACT)
    monkeypatch.setattr(time, "time", lambda: begun - 3600)
    assert signer.metadata(ServiceName.ARTIFACT) != first
