"""The process that loads one model: `python -m inferplane.server.inference.reconcile.load_child`.

It reads a LoadJob on standard input, takes the bytes from the artifact service into one buffer that is already the
message for Triton, and sends that. It writes a line `credentials` whenever it needs call metadata, which comes back as
a line of JSON, and a LoadOutcome as its last line. When standard input ends, whoever started it is gone, and so is it.
"""

import contextlib
import hashlib
import io
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from inferplane.artifact.v1 import artifact_service_pb2, artifact_service_pb2_grpc
from inferplane.server.inference.formats.load_request import LOAD_METHOD
from inferplane.server.inference.reconcile.load_job import LoadJob, LoadOutcome

RANGE = 128 << 20
"""Bytes asked for at once: each request carries credentials of its own, which last a minute."""

_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1))

Credentials = Callable[[], list[tuple[str, str]]]


def load(job: LoadJob, credentials: Credentials) -> LoadOutcome:
    """Take, verify and send the bytes."""
    try:
        message = _message(job, credentials)
    except grpc.RpcError as error:
        return LoadOutcome(artifact=_reason(error))
    if message is None:
        return LoadOutcome(artifact="BLOB_CORRUPT")
    with grpc.insecure_channel(job.triton, _OPTIONS) as channel:
        # Without a serializer, so that grpcio's own copy is the only one.
        call: Any = channel.unary_unary(LOAD_METHOD)
        try:
            call(message, metadata=job.triton_metadata, timeout=job.timeout)
        except grpc.RpcError as error:
            failed: Any = error
            return LoadOutcome(triton=failed.code().name, detail=(failed.details() or "")[:2000])
    return LoadOutcome(loaded=True)


def _message(job: LoadJob, credentials: Credentials) -> bytes | None:
    """The whole message; None where the bytes are not those of the digest."""
    buffer = io.BytesIO()
    buffer.write(job.head)
    digest = hashlib.sha256()
    with grpc.insecure_channel(job.artifact, _OPTIONS) as channel:
        for data in _pieces(channel, job, credentials):
            digest.update(data)
            buffer.write(data)
    if f"sha256:{digest.hexdigest()}" != job.digest:
        return None
    # Not a copy: the buffer gives away the one object that it wrote into.
    return buffer.getvalue()


def _pieces(channel: grpc.Channel, job: LoadJob, credentials: Credentials) -> Iterator[bytes]:
    stub: Any = artifact_service_pb2_grpc.ArtifactServiceStub(channel)  # type: ignore[arg-type] # typed for grpc.aio
    offset = 0
    while offset < job.size:
        request = artifact_service_pb2.ReadArtifactRequest(
            model_version=job.model_version, offset=offset, limit=min(RANGE, job.size - offset)
        )
        began = offset
        for part in stub.ReadArtifact(request, metadata=credentials()):
            offset += len(part.data)
            yield part.data
        if offset == began:
            return


def _reason(error: grpc.RpcError) -> str:
    # Imported only where it is needed: it costs memory that the model may want.
    from inferplane.server.rpc.errors import reason_name
    from inferplane.server.rpc.remote_errors import as_inferplane_error

    failed: Any = error
    return reason_name(as_inferplane_error(failed, "artifact").reason)


def _follow_input(lines: "queue.Queue[bytes]") -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(1)


def _step_back() -> None:
    """Let the data plane have the processor first, and the kernel, out of memory, take this process first."""
    os.nice(10)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def main() -> None:
    """Do the job that standard input names."""
    _step_back()
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_follow_input, args=(lines,), daemon=True).start()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def credentials() -> list[tuple[str, str]]:
        say("credentials")
        return [(key, value) for key, value in json.loads(lines.get())]

    outcome = load(LoadJob.from_line(lines.get()), credentials)
    say(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
