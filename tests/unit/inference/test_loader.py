"""Which backend serves a model is Triton's to say. A Triton with the native backend is not to be had as a wheel, so
this stands in for its answers only."""

from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from inferplane.server.inference.deployments import VersionInfo
from inferplane.server.inference.reconcile.load_job import LoadJob, LoadOutcome
from inferplane.server.inference.reconcile.loader import AwayError, LoadRefusedError, ModelLoader
from inferplane.server.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
VERSION = VersionInfo("m", 1, "sha256:" + "0" * 64, 4, SIGNATURE, "")
NO_BACKEND = "load failed: unable to find backend library for backend 'onnxruntime', try specifying runtime"
NO_MODEL = "load failed: failed to load model: the protobuf cannot be parsed"
POLLING = "explicit model load / unload is not allowed if polling is enabled"


class Link:
    """A Triton that refuses the probe with `says`; counts the probes."""

    endpoint = "127.0.0.1:1"
    metadata = ()

    def __init__(self, says: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        self.says = says
        self.code = code
        self.probes = 0
        self.stub = self

    def raw_unary(self, _method: str) -> Any:
        return self.probe

    async def probe(self, data: bytes, **_options: Any) -> bytes:
        self.probes += 1
        service_pb2.RepositoryModelLoadRequest.FromString(data)
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(self.code, nothing, nothing, details=self.says)

    async def RepositoryModelUnload(self, _request: Any, **_options: Any) -> None:  # noqa: N802 - Triton's name
        """Nothing is loaded."""


class Loader(ModelLoader):
    """Ends each load as `outcome` says, and keeps the jobs."""

    def __init__(self, link: Any) -> None:
        super().__init__(link, "127.0.0.1:1", list)
        self.outcome = LoadOutcome(loaded=True)
        self.backends: list[str] = []

    async def _run(self, job: LoadJob) -> LoadOutcome:
        request = service_pb2.RepositoryModelLoadRequest.FromString(job.head + bytes(job.size))
        native = '"onnxruntime"' in request.parameters["config"].string_param
        self.backends.append("onnxruntime" if native else "python")
        return self.outcome


async def test_the_native_backend_is_used_where_there_is_one() -> None:
    link = Link(NO_MODEL)
    loader = Loader(link)
    for _ in range(2):
        await loader.load("m", VERSION)
    assert (loader.backends, link.probes) == (["onnxruntime", "onnxruntime"], 1)


async def test_elsewhere_the_shim_is_used_and_the_model_travels_once() -> None:
    link = Link(NO_BACKEND)
    loader = Loader(link)
    for _ in range(2):
        await loader.load("m", VERSION)
    assert (loader.backends, link.probes) == (["python", "python"], 1)


async def test_after_a_failure_the_backend_is_asked_for_again() -> None:
    link = Link(NO_BACKEND)
    loader = Loader(link)
    loader.outcome = LoadOutcome(triton="INTERNAL", detail="the model is broken")
    with pytest.raises(LoadRefusedError, match="Triton could not load it: the model is broken"):
        await loader.load("m", VERSION)
    link.says, loader.outcome = NO_MODEL, LoadOutcome(loaded=True)
    await loader.load("m", VERSION)
    assert loader.backends == ["python", "onnxruntime"]


async def test_a_triton_that_takes_no_models_is_told_from_one_that_is_away() -> None:
    with pytest.raises(LoadRefusedError, match="--model-control-mode=explicit"):
        await Loader(Link(POLLING, grpc.StatusCode.UNAVAILABLE)).load("m", VERSION)
    with pytest.raises(AwayError):
        await Loader(Link("failed to connect", grpc.StatusCode.UNAVAILABLE)).load("m", VERSION)


@pytest.mark.parametrize(
    ("outcome", "error", "text"),
    [
        (LoadOutcome(artifact="DEPENDENCY_UNAVAILABLE"), AwayError, "the artifact service does not answer"),
        (LoadOutcome(artifact="BLOB_CORRUPT"), LoadRefusedError, "could not be read: the stored bytes are damaged"),
        (LoadOutcome(triton="UNAVAILABLE", detail="Socket closed"), AwayError, "Triton went away"),
        (LoadOutcome(triton="DEADLINE_EXCEEDED"), LoadRefusedError, "within 300 s"),
        (
            LoadOutcome(triton="INTERNAL", detail="no file /tmp/folderAbC123/1/model.onnx\x00\n\nAt:\n  /srv/a.py(9)"),
            LoadRefusedError,
            r"^Triton could not load it: no file model.onnx\?$",
        ),
        (
            LoadOutcome(triton="INTERNAL", detail="x" * 9999),
            LoadRefusedError,
            r"^Triton could not load it: x{400}$",
        ),
    ],
)
async def test_how_a_load_failed_is_said_to_people(outcome: LoadOutcome, error: type[Exception], text: str) -> None:
    loader = Loader(Link(NO_BACKEND))
    loader.outcome = outcome
    with pytest.raises(error, match=text):
        await loader.load("m", VERSION)


def test_a_job_survives_its_way_through_the_pipe() -> None:
    job = LoadJob("a:1", "models/m/versions/1", "sha256:0", 4, "t:1", (("key", "value"),), b"\x00\xff\n", 3.0)
    line = job.to_line()
    assert line.count(b"\n") == 1
    assert LoadJob.from_line(line) == job
