import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import psutil
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from onnx import TensorProto, helper
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
)

from inferplane.server.artifact.onnx_inspection import inspect_onnx
from inferplane.server.embedded.triton import EmbeddedTriton
from tests.support.mesh import until
from tests.support.onnx_models import ELEMENT_TYPES, counting, identity, many_outputs, model, tensor
from tests.support.processes import computes
from tests.support.triton import load_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

Array = npt.NDArray[Any]

SAMPLES: dict[str, Array] = {
    "BOOL": np.array([[True, False], [False, False]]),
    "INT8": np.array([[-128, 127], [0, -1]], dtype=np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1], [0, -1]], dtype=np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1], [0, -1]], dtype=np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [0, -1]], dtype=np.int64),
    "UINT8": np.array([[0, 255], [1, 2]], dtype=np.uint8),
    "UINT16": np.array([[0, 2**16 - 1], [1, 2]], dtype=np.uint16),
    "UINT32": np.array([[0, 2**32 - 1], [1, 2]], dtype=np.uint32),
    "UINT64": np.array([[0, 2**64 - 1], [1, 2]], dtype=np.uint64),
    "FP16": np.array([[np.nan, -0.0], [65504.0, 6e-8]], dtype=np.float16),
    "FP32": np.array([[np.inf, -0.0], [1e-45, 0.1]], dtype=np.float32),
    "FP64": np.array([[-np.inf, -0.0], [5e-324, 0.1]], dtype=np.float64),
    "BYTES": np.array([["", "a\0b"], ["grüße", "模型"]], dtype=object),
}


class Serving:
    """A Triton with what is needed to load a model into it and to call it."""

    def __init__(self, server: EmbeddedTriton, channel: grpc.aio.Channel, client: Any) -> None:
        self.server = server
        self.headers = dict([server.header])
        self.channel = channel
        self.client = client

    async def load(self, name: str, proto: onnx.ModelProto, version: int = 1) -> None:
        data = proto.SerializeToString()

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        signature = await inspect_onnx(chunks())
        await load_model(self.channel, name, version, signature, data, header=self.server.header)

    async def infer(
        self, name: str, feed: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        inputs = []
        for key, values in feed.items():
            inputs.append(triton.InferInput(key, values.shape, np_to_triton_dtype(values.dtype)))
            inputs[-1].set_data_from_numpy(values)
        wanted = None if outputs is None else [triton.InferRequestedOutput(output) for output in outputs]
        result = await self.client.infer(name, inputs, outputs=wanted, headers=self.headers)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    server = EmbeddedTriton(tmp_path_factory.mktemp("triton"))
    await server.start()
    try:
        async with (
            grpc.aio.insecure_channel(server.endpoint) as channel,
            triton.InferenceServerClient(server.endpoint) as client,
        ):
            yield Serving(server, channel, client)
    finally:
        await server.stop()


def run_locally(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def assert_identical(served: Array, expected: Array) -> None:
    if expected.dtype == object:
        expected = np.array([text.encode() for text in expected.reshape(-1)], dtype=object).reshape(expected.shape)
        assert served.tolist() == expected.tolist()
    else:
        assert (served.dtype, served.tobytes()) == (expected.dtype, expected.tobytes())
    assert served.shape == expected.shape


def adder() -> onnx.ModelProto:
    """y = a + b in FP32 [N], z = a twice in a row, label = a constant STRING."""
    label = onnx.numpy_helper.from_array(np.array(["ja", "nein"], dtype=object), "hello")
    return model(
        [
            helper.make_node("Add", ["a", "b"], ["y"]),
            helper.make_node("Concat", ["a", "a"], ["z"], axis=0),
            helper.make_node("Identity", ["hello"], ["label"]),
        ],
        [tensor("a", "FP32", ["N"]), tensor("b", "FP32", ["M"])],
        [tensor("y", "FP32", ["K"]), tensor("z", "FP32", ["L"]), tensor("label", "BYTES", [2])],
        [label],
    )


A = np.array([1.5, 2.5, -3.0], dtype=np.float32)
B = np.array([0.1, 0.2, 0.3], dtype=np.float32)


@pytest.mark.parametrize("datatype", list(ELEMENT_TYPES))
async def test_each_element_type_is_bit_identical(serving: Serving, datatype: str) -> None:
    proto = identity(datatype, ["N", 2])
    await serving.load(f"identity-{datatype}", proto)
    feed = {"x": SAMPLES[datatype]}
    served = await serving.infer(f"identity-{datatype}", feed)
    assert_identical(served["y"], run_locally(proto, feed)["y"])


async def test_several_inputs_and_outputs(serving: Serving) -> None:
    await serving.load("several", adder())
    served = await serving.infer("several", {"b": B, "a": A})
    expected = run_locally(adder(), {"a": A, "b": B})
    assert served.keys() == expected.keys()
    for name, values in expected.items():
        assert_identical(served[name], values)


async def test_only_requested_outputs_come(serving: Serving) -> None:
    await serving.load("requested", adder())
    served = await serving.infer("requested", {"a": A, "b": B}, outputs=["z"])
    assert set(served) == {"z"}
    assert_identical(served["z"], np.concatenate([A, A]))


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("requested", [None, ["out_2", "out_7", "out_0", "out_5", "out_3"]], ids=["all", "some"])
async def test_outputs_come_in_the_order_of_the_metadata(
    serving: Serving, requested: list[str] | None, start: int
) -> None:
    """Each start of a model has another order of sets."""
    name = f"ordered-{start}"
    await serving.load(name, many_outputs(8))
    metadata = await serving.client.get_model_metadata(name, headers=serving.headers)
    order = [output.name for output in metadata.outputs]
    assert order == [f"out_{i}" for i in range(7, -1, -1)]
    served = await serving.infer(name, {"x": A}, outputs=requested)
    assert list(served) == [name for name in order if requested is None or name in requested]
    for output, values in served.items():
        assert_identical(values, A + np.float32(output[4:]))
    await serving.client.unload_model(name, headers=serving.headers)


async def test_a_run_whose_caller_has_left_ends(serving: Serving) -> None:
    before = {stub.pid for stub in psutil.Process(serving.server.pid).children()}
    await serving.load("endless", counting(1 << 60))
    (stub,) = (stub for stub in psutil.Process(serving.server.pid).children() if stub.pid not in before)
    call = asyncio.create_task(serving.infer("endless", {"x": A}))
    await until(lambda: computes(stub), timeout=60)
    call.cancel()
    await until(lambda: not computes(stub), timeout=60)
    await serving.client.unload_model("endless", headers=serving.headers)
    await until(lambda: not stub.is_running(), timeout=60)


async def test_a_run_that_lasts_is_left_alone_while_its_caller_waits(serving: Serving) -> None:
    await serving.load("slow", counting(3_000_000))
    served = await serving.infer("slow", {"x": A})
    assert served["y"].shape == A.shape


@pytest.mark.parametrize("rows", [1, 3, 1000])
async def test_free_sizes_differ_from_call_to_call(serving: Serving, rows: int) -> None:
    proto = identity("FP32", ["N", None, 2])
    await serving.load("free", proto)
    values = np.arange(rows * 4, dtype=np.float32).reshape(rows, 2, 2)
    assert_identical((await serving.infer("free", {"x": values}))["y"], values)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
async def test_a_scalar_travels_as_one_element(serving: Serving, datatype: str) -> None:
    await serving.load(f"scalar-{datatype}", identity(datatype, []))
    value = SAMPLES[datatype].reshape(-1)[3:4]
    served = await serving.infer(f"scalar-{datatype}", {"x": value})
    assert_identical(served["y"], value)


async def test_a_model_without_inputs_answers(serving: Serving) -> None:
    constant = helper.make_tensor("c", TensorProto.FLOAT, [3], B)
    proto = model([helper.make_node("Identity", ["c"], ["y"])], [], [tensor("y", "FP32", [3])], [constant])
    await serving.load("constant", proto)
    assert_identical((await serving.infer("constant", {}))["y"], B)


async def test_exactly_the_loaded_version_is_served(serving: Serving) -> None:
    await serving.load("versions", identity(), version=3)
    await serving.load("versions", identity("INT64"), version=7)
    metadata = await serving.client.get_model_metadata("versions", headers=serving.headers)
    assert list(metadata.versions) == ["7"]
    assert metadata.inputs[0].datatype == "INT64"


async def test_a_failed_load_leaves_the_version_before_it(serving: Serving) -> None:
    await serving.load("keeps", identity(), version=1)
    proto = identity()
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(grpc.aio.AioRpcError):
        await serving.load("keeps", proto, version=2)
    assert_identical((await serving.infer("keeps", {"x": A}))["y"], A)


async def test_an_unloaded_model_is_gone(serving: Serving) -> None:
    await serving.load("unloaded", identity())
    await serving.client.unload_model("unloaded", headers=serving.headers)
    assert not await serving.client.is_model_ready("unloaded", headers=serving.headers)


@pytest.mark.parametrize(
    ("feed", "problem"),
    [
        ({"a": A.reshape(3, 1), "b": B}, r"unexpected shape for input 'a'"),
        ({"a": A.astype(np.float64), "b": B}, r"inference input '?a'? data-type is 'FP64'"),
        ({"a": A}, r"expected 2 inputs but got 1 inputs"),
        ({"a": A, "b": B, "c": B}, r"expected 2 inputs but got 3 inputs"),
        ({"a": A, "b": B[:2]}, r"the model failed on this input: .*2 by 3|the model failed on this input: .*3 by 2"),
    ],
    ids=["rank", "type", "missing", "unknown", "sizes"],
)
async def test_a_wrong_input_is_an_error_and_harms_nobody(
    serving: Serving, feed: dict[str, Array], problem: str
) -> None:
    await serving.load("strict", adder())
    with pytest.raises(InferenceServerException, match=problem):
        await serving.infer("strict", feed)
    assert_identical((await serving.infer("strict", {"a": A, "b": B}))["y"], A + B)


async def test_a_wrong_fixed_size_is_an_error(serving: Serving) -> None:
    await serving.load("fixed", identity("FP32", [2]))
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'x'"):
        await serving.infer("fixed", {"x": A})


async def test_what_is_wrong_with_a_value_is_told_with_the_shape_that_it_came_in(serving: Serving) -> None:
    rows = onnx.numpy_helper.from_array(np.zeros((5, 2), dtype=np.float32), "rows")
    gather = helper.make_node("Gather", ["rows", "i"], ["y"])
    await serving.load("rows", model([gather], [tensor("i", "INT64", ["N"])], [tensor("y", "FP32", ["N", 2])], [rows]))
    with pytest.raises(InferenceServerException, match=r"idx=99 must be within .*\(inputs: 'i' \[2\]\)") as caught:
        await serving.infer("rows", {"i": np.array([1, 99])})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_bytes_that_are_no_text_are_refused_by_name(serving: Serving) -> None:
    await serving.load("text", identity("BYTES"))
    with pytest.raises(InferenceServerException, match="input 'x' holds bytes that are not UTF-8") as caught:
        await serving.infer("text", {"x": np.array([b"\xff"], dtype=object)})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_each_model_is_one_process_of_one_server(serving: Serving) -> None:
    await serving.load("first", identity())
    before = {stub.pid for stub in psutil.Process(serving.server.pid).children()}
    await serving.load("second", identity())
    after = {stub.pid for stub in psutil.Process(serving.server.pid).children()}
    assert len(after - before) == 1
