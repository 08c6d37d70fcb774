"""Moving the bytes of a model: uploads and downloads that go on after a broken stream, digests checked."""

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import grpc

from inferplane.artifact.v1 import artifact_service_pb2, artifact_service_pb2_grpc, upload_pb2
from inferplane.artifact.v1.model_pb2 import ModelVersion
from inferplane.client.calls import Backoff, Stall, unary
from inferplane.client.errors import (
    DataLoss,
    DigestMismatch,
    InferplaneClientError,
    Internal,
    NotFound,
    Unavailable,
    translate,
)
from inferplane.client.files import sync_folder

Progress = Callable[[int, int], None]
"""Called with the bytes moved so far and the bytes in all; a resumed upload may step back."""

MESSAGE_BYTES = 1024 * 1024
_UPLOADS = uuid.UUID("6f0f3f0e-6a0b-5d6e-9a53-7a2c1f9d7c11")
_HIDDEN = "Internal error from Core"
_RESUMABLE = {"OVERLOADED", "STREAM_STALLED", "TOKEN_EXPIRED", "UPLOAD_BUSY", "WRITE_OFFSET_MISMATCH"}


def _open(path: Path, mode: Literal["rb", "xb"]) -> BinaryIO:
    # Not in a thread: a task that is cancelled meanwhile would leave the file open behind it.
    return path.open(mode)


def _resumable(error: InferplaneClientError) -> bool:
    return isinstance(error, Unavailable) or error.reason in _RESUMABLE


def _write_failed(error: InferplaneClientError) -> InferplaneClientError:
    # A write that fails because the service ended the stream hides the service's own status (grpc#36066). Another
    # try meets that status again, unless it was temporary.
    if isinstance(error, Internal) and error.message == _HIDDEN:
        return Unavailable("the service ended the stream")
    return error


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload: its size in bytes and its digest, as `sha256:` and 64 hexadecimal digits."""

    path: Path
    size: int
    digest: str

    @classmethod
    def inspect(cls, path: Path) -> "LocalFile":
        """Read the file through once; blocks the thread. Raises OSError."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(path, file.tell(), f"sha256:{digest}")

    def upload_id(self, model: str) -> str:
        """Derive the upload's id, the same in every process, so that a new one goes on where one broke off."""
        return str(uuid.uuid5(_UPLOADS, f"{model}\n{self.digest}\n{self.size}"))


class Upload:
    """One file on its way to the artifact service."""

    def __init__(
        self,
        stub: artifact_service_pb2_grpc.ArtifactServiceStub,
        name: str,
        file: LocalFile,
        backoff: Backoff,
        progress: Progress | None,
    ) -> None:
        self._stub = stub
        self._name = name
        self._file = file
        self._stall = Stall(backoff)
        self._progress = progress
        self._read_error: OSError | None = None
        self._ended: Callable[[], bool] = lambda: False

    async def run(self) -> None:
        """Bring the upload to completion, from wherever it stands.

        Raises DigestMismatch where the service stored other bytes, OSError where the file cannot be read.
        """
        while True:
            try:
                upload = await self._status()
                if not upload.complete:
                    self._stall.reached(upload.committed_size)
                    upload = await self._write(upload.committed_size)
            except InferplaneClientError as error:
                if not _resumable(error):
                    raise
                await self._stall.pause(error)
                continue
            self._check(upload)
            return

    async def _status(self) -> upload_pb2.Upload:
        request = artifact_service_pb2.GetWriteStatusRequest(upload=self._name)
        try:
            return await unary(self._stub.GetWriteStatus, request)
        except NotFound as error:
            if error.reason != "UPLOAD_NOT_FOUND":
                raise
            return upload_pb2.Upload(name=self._name)

    async def _write(self, offset: int) -> upload_pb2.Upload:
        self._ended = lambda: call.done()
        file = _open(self._file.path, "rb")
        call = self._stub.WriteArtifact(self._messages(file, offset))
        try:
            return (await call).upload
        except grpc.aio.AioRpcError as error:
            raise _write_failed(translate(error)) from error
        except asyncio.CancelledError:
            # grpc.aio cancels the call when the messages cannot be made, and hides why.
            if self._read_error is not None:
                raise self._read_error from None
            raise
        finally:
            call.cancel()
            file.close()

    async def _messages(self, file: BinaryIO, offset: int) -> AsyncIterator[artifact_service_pb2.WriteArtifactRequest]:
        try:
            async for position, data in self._pieces(file, offset):
                # Writing to a stream that the service has ended would hide the service's status.
                if self._ended():
                    return
                yield artifact_service_pb2.WriteArtifactRequest(upload=self._name, write_offset=position, data=data)
                if self._progress is not None:
                    self._progress(position + len(data), self._file.size)
        except OSError as error:
            self._read_error = error
            raise
        yield artifact_service_pb2.WriteArtifactRequest(
            upload=self._name,
            write_offset=self._file.size,
            finish=artifact_service_pb2.WriteArtifactRequest.FinishWrite(
                size=self._file.size, digest=self._file.digest
            ),
        )

    async def _pieces(self, file: BinaryIO, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        await asyncio.to_thread(file.seek, offset)
        while offset < self._file.size:
            data = await asyncio.to_thread(file.read, min(MESSAGE_BYTES, self._file.size - offset))
            if not data:
                raise OSError(f"{self._file.path} became shorter while it was uploaded")
            yield offset, data
            offset += len(data)

    def _check(self, upload: upload_pb2.Upload) -> None:
        if not upload.complete or upload.digest != self._file.digest:
            raise DigestMismatch(
                f"the service stored other bytes than those of {self._file.path}; push it again",
                expected=self._file.digest,
                actual=upload.digest,
            )


class Download:
    """The bytes of one version on their way to a file, which appears whole and verified or not at all."""

    def __init__(
        self,
        stub: artifact_service_pb2_grpc.ArtifactServiceStub,
        version: ModelVersion,
        target: Path,
        backoff: Backoff,
        progress: Progress | None,
    ) -> None:
        self._stub = stub
        self._version = version
        self._target = target
        self._temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        self._stall = Stall(backoff)
        self._progress = progress
        self._position = 0
        self._sha256 = hashlib.sha256()

    async def run(self, authenticate: Callable[[], Awaitable[object]]) -> None:
        """Fetch, verify, rename. `authenticate` is awaited before each further try, to renew the token.

        Raises DigestMismatch where the bytes are not the version's, OSError where they cannot be written.
        """
        file = _open(self._temporary, "xb")
        try:
            await self._fetch(file, authenticate)
            await asyncio.to_thread(self._publish, file)
        finally:
            await asyncio.to_thread(self._discard, file)

    async def _fetch(self, file: BinaryIO, authenticate: Callable[[], Awaitable[object]]) -> None:
        while self._position < self._version.size:
            self._stall.reached(self._position)
            try:
                await self._read(file)
            except InferplaneClientError as error:
                if not _resumable(error):
                    raise
                await self._stall.pause(error)
                await authenticate()
            else:
                if self._position < self._version.size:
                    raise DataLoss("the service ended the artifact early")

    async def _read(self, file: BinaryIO) -> None:
        request = artifact_service_pb2.ReadArtifactRequest(model_version=self._version.name, offset=self._position)
        call = self._stub.ReadArtifact(request)
        try:
            async for piece in call:
                if piece.offset != self._position:
                    raise DataLoss(f"the service sent byte {piece.offset} instead of {self._position}")
                await asyncio.to_thread(self._store, file, piece.data)
                if self._progress is not None:
                    self._progress(self._position, self._version.size)
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        finally:
            call.cancel()

    def _store(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        self._sha256.update(data)
        self._position += len(data)

    def _publish(self, file: BinaryIO) -> None:
        actual = f"sha256:{self._sha256.hexdigest()}"
        if actual != self._version.digest or self._position != self._version.size:
            raise DigestMismatch(
                f"the bytes received are not those of {self._version.name}; {self._target} was left as it was",
                expected=self._version.digest,
                actual=actual,
            )
        file.flush()
        os.fsync(file.fileno())
        self._temporary.replace(self._target)
        sync_folder(self._target.parent)

    def _discard(self, file: BinaryIO) -> None:
        file.close()
        self._temporary.unlink(missing_ok=True)
