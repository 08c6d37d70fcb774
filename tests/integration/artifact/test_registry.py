"""ModelRegistryService: models, versions and aliases."""

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from sqlalchemy import URL

from inferplane.artifact.v1 import model_registry_service_pb2 as pb
from inferplane.server.artifact import onnx_inspection, registry, repository
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import MODEL_BYTES, Artifacts, data_messages, digest, messages, new_upload
from tests.support.database import audit_events, rows
from tests.support.mesh import ADMIN, Mesh, detail, failure, reason, running_mesh
from tests.support.onnx_models import identity

NOT_FOUND = grpc.StatusCode.NOT_FOUND
NOT_OPEN = (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_NOT_OPEN")


async def violated(call: Any) -> list[str]:
    """The fields that the call is refused for."""
    error = await failure(call)
    bad_request = error_details_pb2.BadRequest()
    assert detail(error, bad_request)
    return [violation.field for violation in bad_request.field_violations]


async def walk(artifacts: Artifacts, method: str, request: Any, field: str) -> list[list[str]]:
    """The names on each page."""
    pages = []
    while True:
        page = await artifacts.call(method, request)
        pages.append([item.name for item in getattr(page, field)])
        if not page.next_page_token:
            return pages
        request.page_token = page.next_page_token


async def test_a_model_is_answered_as_it_was_created(artifacts: Artifacts) -> None:
    model = await artifacts.model("resnet", description="tells cats from dogs")
    assert (model.name, model.description, model.creator) == (
        "models/resnet",
        "tells cats from dogs",
        f"users/{ADMIN}",
    )
    assert await artifacts.call("GetModel", pb.GetModelRequest(name="models/resnet")) == model


async def test_a_model_exists_once(artifacts: Artifacts) -> None:
    call = artifacts.call("CreateModel", pb.CreateModelRequest(model_id="digits"))
    assert await reason(call) == (grpc.StatusCode.ALREADY_EXISTS, "MODEL_EXISTS")


async def test_creating_a_model_again_with_its_key_answers_the_same(artifacts: Artifacts) -> None:
    first = await artifacts.model("resnet", idempotency_key="k")
    assert await artifacts.model("resnet", idempotency_key="k") == first


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model_id": "-bad"}, "model_id"),
        ({"model_id": "a" * 129}, "model_id"),
        ({"model_id": "ok", "description": "a\0b"}, "description"),
        ({"model_id": "ok", "description": "ä" * 1025}, "description"),
    ],
)
async def test_a_bad_model_is_refused_by_its_field(artifacts: Artifacts, fields: dict[str, str], path: str) -> None:
    assert await violated(artifacts.call("CreateModel", pb.CreateModelRequest(**fields))) == [path]


async def test_the_longest_description_is_taken(artifacts: Artifacts) -> None:
    assert (await artifacts.model("resnet", description="😀" * 1024)).description == "😀" * 1024


async def test_an_unknown_model_is_not_found(artifacts: Artifacts) -> None:
    for method, request in (
        ("GetModel", pb.GetModelRequest(name="models/nothing")),
        ("ListModelVersions", pb.ListModelVersionsRequest(parent="models/nothing")),
        ("ListAliases", pb.ListAliasesRequest(parent="models/nothing")),
        ("GetModelVersion", pb.GetModelVersionRequest(name="models/nothing/versions/1")),
        ("GetModelVersion", pb.GetModelVersionRequest(name="models/nothing/aliases/a")),
        ("CreateModelVersion", pb.CreateModelVersionRequest(parent="models/nothing", upload=new_upload("nothing"))),
    ):
        assert await reason(artifacts.call(method, request)) == (NOT_FOUND, "MODEL_NOT_FOUND"), method


async def test_models_are_listed_by_the_bytes_of_their_names(artifacts: Artifacts) -> None:
    for name in ("b", "A", "a-1", "a.1", "a"):
        await artifacts.model(name)
    pages = await walk(artifacts, "ListModels", pb.ListModelsRequest(page_size=4), "models")
    names = ["models/" + name for name in ("A", "a", "a-1", "a.1", "b", "digits")]
    assert pages == [names[:4], names[4:]]


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 100])
async def test_pages_hold_only_what_the_caller_may_see_and_are_full(
    artifacts: Artifacts, mesh: Mesh, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    monkeypatch.setattr(registry, "_SCANNED", 3)
    for number in range(10):
        await artifacts.model(f"{'mine' if number % 3 else 'other'}-{number}")
    artifacts.metadata = await mesh.user("alice", viewer="mine-*")
    pages = await walk(artifacts, "ListModels", pb.ListModelsRequest(page_size=page_size), "models")
    assert [name for page in pages for name in page] == [f"models/mine-{number}" for number in (1, 2, 4, 5, 7, 8)]
    assert all(len(page) == page_size for page in pages[:-1])
    assert pages[-1]


async def test_a_version_says_what_the_file_is(artifacts: Artifacts) -> None:
    version = await artifacts.version()
    assert (version.name, version.digest, version.size, version.format, version.creator) == (
        "models/digits/versions/1",
        digest(MODEL_BYTES),
        len(MODEL_BYTES),
        "onnx",
        f"users/{ADMIN}",
    )
    (given,) = version.signature.inputs
    assert (given.name, given.datatype, list(given.shape)) == ("x", "INT64", [-1])
    assert await artifacts.call("GetModelVersion", pb.GetModelVersionRequest(name=version.name)) == version


async def test_versions_count_from_one_without_gaps_however_many_are_made_at_once(artifacts: Artifacts) -> None:
    uploads = [await artifacts.push() for _ in range(4)]
    bad = await artifacts.push(b"no model")
    outcomes = await asyncio.gather(
        *(artifacts.create_version(upload) for upload in [*uploads[:2], bad, *uploads[2:]]), return_exceptions=True
    )
    names = [outcome.name for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert sorted(names) == [f"models/digits/versions/{number}" for number in (1, 2, 3, 4)]


async def test_an_upload_becomes_one_version(artifacts: Artifacts) -> None:
    upload = await artifacts.push()
    calls = [artifacts.create_version(upload) for _ in range(3)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    for call, outcome in zip(calls, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            assert await reason(call) == NOT_OPEN


async def test_a_repeated_request_is_answered_without_another_inspection(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspected = 0
    real = onnx_inspection.inspect_onnx

    async def counting(chunks: Any) -> Any:
        nonlocal inspected
        inspected += 1
        return await real(chunks)

    monkeypatch.setattr(onnx_inspection, "inspect_onnx", counting)
    async with running_mesh(settings, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        upload = await artifacts.push()
        first = await artifacts.create_version(upload, idempotency_key="k")
        assert await artifacts.create_version(upload, idempotency_key="k") == first
        assert inspected == 1
        other_body = artifacts.create_version(upload, idempotency_key="k", label_output="y")
        assert await reason(other_body) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED")
        assert await reason(artifacts.create_version(upload, idempotency_key="other")) == NOT_OPEN


async def test_other_bytes_that_take_an_uploads_name_while_it_is_inspected_make_no_version(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspected, go_on = asyncio.Event(), asyncio.Event()
    real = onnx_inspection.inspect_onnx

    async def waiting(chunks: Any) -> Any:
        signature = await real(chunks)
        inspected.set()
        await go_on.wait()
        return signature

    monkeypatch.setattr(onnx_inspection, "inspect_onnx", waiting)
    async with running_mesh(settings, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        upload = await artifacts.push()
        publishing = artifacts.create_version(upload)
        await inspected.wait()
        await artifacts.call("DeleteModel", pb.DeleteModelRequest(name="models/digits"))
        await artifacts.model()
        await artifacts.write(*messages(upload, b"no model"))
        go_on.set()
        assert await reason(publishing) == (grpc.StatusCode.ABORTED, "UPLOAD_BUSY")
        versions = pb.ListModelVersionsRequest(parent="models/digits")
        assert await walk(artifacts, "ListModelVersions", versions, "model_versions") == [[]]
        invalid = (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_FORMAT_INVALID")
        assert await reason(artifacts.create_version(upload)) == invalid


async def test_an_upload_that_is_not_there_or_not_finished_makes_no_version(artifacts: Artifacts) -> None:
    upload = new_upload()
    assert await reason(artifacts.create_version(upload)) == (NOT_FOUND, "UPLOAD_NOT_FOUND")
    await artifacts.write(*data_messages(upload, b"abc"))
    incomplete = (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")
    assert await reason(artifacts.create_version(upload)) == incomplete


async def test_an_upload_of_another_model_makes_no_version(artifacts: Artifacts) -> None:
    await artifacts.model("other")
    request = pb.CreateModelVersionRequest(parent="models/digits", upload=await artifacts.push(model="other"))
    assert await violated(artifacts.call("CreateModelVersion", request)) == ["upload"]


async def test_a_file_that_is_no_model_makes_no_version_and_stays(artifacts: Artifacts) -> None:
    upload = await artifacts.push(b"no model")
    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_FORMAT_INVALID")
    assert await reason(artifacts.create_version(upload, idempotency_key="k")) == invalid
    assert (await artifacts.status(upload)).complete
    assert await reason(artifacts.create_version(upload, idempotency_key="k")) == invalid


async def test_a_model_that_cannot_be_served_makes_no_version(artifacts: Artifacts) -> None:
    proto = identity()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    call = artifacts.create_version(await artifacts.push(proto.SerializeToString()))
    assert await reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_UNSUPPORTED")


async def test_damaged_bytes_make_no_version(artifacts: Artifacts, settings: Settings) -> None:
    upload = await artifacts.push()
    (chunk,) = (settings.data_dir / "blobs").glob("??/*")
    chunk.write_bytes(b"damaged")
    assert await reason(artifacts.create_version(upload)) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")


@pytest.mark.parametrize("label", ["nothing", "x", "y\0"])
async def test_a_label_output_that_is_no_output_is_refused(artifacts: Artifacts, label: str) -> None:
    upload = await artifacts.push()
    assert await violated(artifacts.create_version(upload, label_output=label)) == ["label_output"]
    assert (await artifacts.create_version(upload, label_output="y")).label_output == "y"


async def test_versions_are_listed_newest_first(artifacts: Artifacts) -> None:
    for _ in range(3):
        await artifacts.version()
    request = pb.ListModelVersionsRequest(parent="models/digits", page_size=2)
    names = [f"models/digits/versions/{number}" for number in (3, 2, 1)]
    assert await walk(artifacts, "ListModelVersions", request, "model_versions") == [names[:2], names[2:]]


async def test_a_page_of_large_signatures_is_shorter(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        await artifacts.version()
    monkeypatch.setattr(repository, "PAGE_BYTES", 1)
    request = pb.ListModelVersionsRequest(parent="models/digits")
    pages = await walk(artifacts, "ListModelVersions", request, "model_versions")
    assert pages == [["models/digits/versions/2"], ["models/digits/versions/1"]]


async def test_a_version_that_is_not_there_is_not_found(artifacts: Artifacts) -> None:
    for name, expected in (("versions/1", "MODEL_VERSION_NOT_FOUND"), ("aliases/a", "MODEL_ALIAS_NOT_FOUND")):
        call = artifacts.call("GetModelVersion", pb.GetModelVersionRequest(name=f"models/digits/{name}"))
        assert await reason(call) == (NOT_FOUND, expected)


@pytest.mark.parametrize(
    "name", ["models/digits", "models/digits/versions/0", "models/digits/aliases/1a", "models/a/b"]
)
async def test_a_name_that_is_neither_version_nor_alias_is_refused(artifacts: Artifacts, name: str) -> None:
    assert await violated(artifacts.call("GetModelVersion", pb.GetModelVersionRequest(name=name))) == ["name"]


def alias(name: str = "production", version: int = 1, model: str = "digits", **fields: str) -> pb.SetAliasRequest:
    return pb.SetAliasRequest(
        name=f"models/digits/aliases/{name}", model_version=f"models/{model}/versions/{version}", **fields
    )


async def test_an_alias_leads_to_its_version_and_moves(artifacts: Artifacts, database_url: URL) -> None:
    versions = [await artifacts.version(), await artifacts.version()]
    for number, version in enumerate(versions, 1):
        answer = await artifacts.call("SetAlias", alias(version=number))
        assert answer.model_version == version.name
        found = await artifacts.call("GetModelVersion", pb.GetModelVersionRequest(name=answer.name))
        assert found == version
    moves = [event.changes[0] for event in await audit_events(database_url, "alias.set")]
    assert [(move.field, move.HasField("before"), move.after.number) for move in moves] == [
        ("version", False, 1),
        ("version", True, 2),
    ]
    assert moves[1].before.number == 1


async def test_a_repeated_set_does_not_move_an_alias_back(artifacts: Artifacts) -> None:
    await artifacts.version()
    await artifacts.version()
    first = await artifacts.call("SetAlias", alias(idempotency_key="k"))
    await artifacts.call("SetAlias", alias(version=2))
    assert await artifacts.call("SetAlias", alias(idempotency_key="k")) == first
    found = await artifacts.call("GetModelVersion", pb.GetModelVersionRequest(name=first.name))
    assert found.name == "models/digits/versions/2"


async def test_an_alias_points_at_a_version_of_its_model(artifacts: Artifacts) -> None:
    await artifacts.model("other")
    await artifacts.version("other")
    assert await reason(artifacts.call("SetAlias", alias())) == (NOT_FOUND, "MODEL_VERSION_NOT_FOUND")
    assert await violated(artifacts.call("SetAlias", alias(model="other"))) == ["model_version"]


async def test_aliases_are_listed_by_name(artifacts: Artifacts) -> None:
    await artifacts.version()
    for name in ("b", "a", "C"):
        await artifacts.call("SetAlias", alias(name))
    request = pb.ListAliasesRequest(parent="models/digits", page_size=2)
    names = [f"models/digits/aliases/{name}" for name in ("C", "a", "b")]
    assert await walk(artifacts, "ListAliases", request, "aliases") == [names[:2], names[2:]]


async def test_a_publisher_may_not_move_an_alias(artifacts: Artifacts, mesh: Mesh) -> None:
    await artifacts.version()
    artifacts.metadata = await mesh.user("alice", publisher="*")
    call = artifacts.call("SetAlias", alias())
    assert await reason(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_versions_are_immutable_even_for_the_service(artifacts: Artifacts, database_url: URL) -> None:
    query = (
        "SELECT privilege_type::text FROM information_schema.role_table_grants"
        " WHERE grantee = 'inferplane_artifact' AND table_name = 'model_version' ORDER BY 1"
    )
    assert await rows(database_url, query) == [("INSERT",), ("SELECT",)]
