"""Uploads and downloads survive broken streams, and wrong bytes never pass."""

import hashlib
from pathlib import Path

import grpc
import pytest

from inferplane.client import DigestMismatch, Inferplane, errors
from tests.support.fake_services import Fault
from tests.support.fake_serving import FakeMesh

_MIB = 1024 * 1024
_BYTES = bytes(range(256)) * (4 * 4 * 1024) + b"tail"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(_BYTES)
    return path


async def test_a_push_makes_a_version_of_the_bytes(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    seen: list[tuple[int, int]] = []
    version = await plane.artifact.push(
        "digits", model_file, label_output="label", progress=lambda moved, total: seen.append((moved, total))
    )
    assert (version.name, version.label_output) == ("models/digits/versions/1", "label")
    assert version.digest == f"sha256:{hashlib.sha256(_BYTES).hexdigest()}"
    assert mesh.artifact.blobs[version.name] == _BYTES
    assert seen[-1] == (len(_BYTES), len(_BYTES))


async def test_a_broken_push_goes_on_where_it_stood(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    mesh.artifact.breaks = [2 * _MIB, 4 * _MIB]
    version = await plane.artifact.push("digits", model_file)
    assert mesh.artifact.blobs[version.name] == _BYTES
    assert mesh.artifact.write_offsets == [0, _MIB, 3 * _MIB]


async def test_a_new_process_resumes_the_same_upload(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    mesh.artifact.breaks = [3 * _MIB, 0, 0, 0, 0]
    with pytest.raises(errors.Unavailable):
        await plane.artifact.push("digits", model_file)
    mesh.artifact.write_offsets.clear()
    async with Inferplane.connect(mesh.endpoints, mesh.auth.issue().access_token) as another:
        await another.artifact.push("digits", model_file)
    assert mesh.artifact.write_offsets == [2 * _MIB]
    assert len(mesh.artifact.uploads) == 1


async def test_a_push_gives_up_without_progress(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    mesh.artifact.breaks = [0] * 100
    with pytest.raises(errors.Unavailable):
        await plane.artifact.push("digits", model_file)
    assert len(mesh.artifact.breaks) == 96


@pytest.mark.parametrize(
    "fault",
    [
        Fault(grpc.StatusCode.UNAVAILABLE, "STREAM_EXPIRED"),
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.01),
        Fault(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
        Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_STALLED"),
    ],
)
@pytest.mark.parametrize("position", [0, _MIB, 3 * _MIB])
async def test_a_push_that_is_ended_for_the_moment_goes_on_where_it_stood(
    mesh: FakeMesh, plane: Inferplane, model_file: Path, fault: Fault, position: int
) -> None:
    mesh.artifact.breaks = [position]
    mesh.artifact.break_fault = fault
    version = await plane.artifact.push("digits", model_file)
    assert mesh.artifact.blobs[version.name] == _BYTES


async def test_a_refused_file_leaves_no_model_that_was_made_for_it(
    mesh: FakeMesh, plane: Inferplane, model_file: Path
) -> None:
    mesh.fault("CreateModelVersion", grpc.StatusCode.INVALID_ARGUMENT, "MODEL_FORMAT_INVALID", times=2)
    with pytest.raises(errors.InvalidArgument):
        await plane.artifact.push("digits", model_file)
    assert not mesh.artifact.models
    await plane.artifact.create_model("digits")
    with pytest.raises(errors.InvalidArgument):
        await plane.artifact.push("digits", model_file)
    assert list(mesh.artifact.models) == ["models/digits"]


async def test_a_push_that_only_broke_off_keeps_its_model(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    mesh.artifact.breaks = [0] * 100
    with pytest.raises(errors.Unavailable):
        await plane.artifact.push("digits", model_file)
    assert mesh.artifact.models


async def test_a_token_that_expires_between_two_streams_is_renewed(
    mesh: FakeMesh, plane: Inferplane, model_file: Path
) -> None:
    mesh.fault("WriteArtifact", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
    assert (await plane.artifact.push("digits", model_file)).name == "models/digits/versions/1"


async def test_the_same_bytes_again_make_another_version(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    await plane.artifact.push("digits", model_file)
    assert (await plane.artifact.push("digits", model_file)).name == "models/digits/versions/2"


async def test_other_bytes_at_the_service_are_a_digest_mismatch(
    mesh: FakeMesh, plane: Inferplane, model_file: Path
) -> None:
    mesh.artifact.corrupt = True
    with pytest.raises(DigestMismatch):
        await plane.artifact.push("digits", model_file)
    assert "CreateModelVersion" not in mesh.fakes.calls


async def test_a_refused_push_is_not_tried_again(mesh: FakeMesh, plane: Inferplane, model_file: Path) -> None:
    mesh.fault("WriteArtifact", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", times=9)
    with pytest.raises(errors.PermissionDenied):
        await plane.artifact.push("digits", model_file)
    assert mesh.fakes.calls.count("WriteArtifact") < 4


async def test_a_file_that_shrinks_meanwhile_is_an_os_error(plane: Inferplane, model_file: Path) -> None:
    def shrink(moved: int, total: int) -> None:
        model_file.write_bytes(b"")

    with pytest.raises(OSError, match="shorter"):
        await plane.artifact.push("digits", model_file, progress=shrink)


async def test_a_missing_file_is_an_os_error(plane: Inferplane, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await plane.artifact.push("digits", tmp_path / "none")


async def test_a_download_writes_the_verified_bytes(mesh: FakeMesh, plane: Inferplane, tmp_path: Path) -> None:
    mesh.artifact.add_version("models/digits/versions/1", _BYTES)
    await plane.artifact.set_alias("digits", "production", 1)
    version = await plane.artifact.download("digits@production", tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == _BYTES
    assert version.name == "models/digits/versions/1"


async def test_a_broken_download_goes_on_where_it_stood(mesh: FakeMesh, plane: Inferplane, tmp_path: Path) -> None:
    mesh.artifact.add_version("models/digits/versions/1", _BYTES)
    mesh.artifact.breaks = [_MIB, 2 * _MIB]
    await plane.artifact.download("digits", tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == _BYTES
    assert mesh.artifact.read_offsets == [0, _MIB, 2 * _MIB]


async def test_a_download_of_other_bytes_leaves_the_file_as_it_was(
    mesh: FakeMesh, plane: Inferplane, tmp_path: Path
) -> None:
    mesh.artifact.add_version("models/digits/versions/1", _BYTES)
    mesh.artifact.corrupt = True
    target = tmp_path / "copy.onnx"
    target.write_bytes(b"before")
    with pytest.raises(DigestMismatch):
        await plane.artifact.download("digits:1", target)
    assert target.read_bytes() == b"before"
    assert _names(tmp_path) == [target.name]


async def test_a_download_that_fails_leaves_nothing(mesh: FakeMesh, plane: Inferplane, tmp_path: Path) -> None:
    mesh.artifact.add_version("models/digits/versions/1", _BYTES)
    mesh.artifact.breaks = [0] * 100
    with pytest.raises(errors.Unavailable):
        await plane.artifact.download("digits", tmp_path / "copy.onnx")
    assert _names(tmp_path) == []
