"""Uploads that wait for their place."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.slots import Slots
from inferplane.server.artifact.uploads import Piece, Uploads
from inferplane.server.errors import InferplaneError
from inferplane.server.names import UploadName
from inferplane.server.storage.audit import Actor


async def test_an_upload_that_waits_has_read_nothing() -> None:
    slots = Slots(1, 1, wait=0.01)
    unused: Any = None
    uploads = Uploads(unused, unused, max_size=1, slots=slots)
    read: list[Piece] = []

    async def pieces() -> AsyncIterator[Piece]:
        read.append(Piece(UploadName("digits", "1"), 0, b"x"))
        yield read[-1]

    async with slots.taken("users/bob"):
        with pytest.raises(InferplaneError) as caught:
            await uploads.write(pieces(), Actor("users/alice"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_OVERLOADED
    assert not read
