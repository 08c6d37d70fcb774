"""Unmodified Triton clients get, through Inferplane, bit for bit what Triton itself answers."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from onnx import helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.support.onnx_models import identity, model, tensor
from tests.support.up import Up

RANDOM = np.random.default_rng(11)


def numbers(dtype: str, shape: tuple[int, ...]) -> Any:
    """Random bits as numbers, NaNs and infinities among them."""
    return np.frombuffer(RANDOM.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)


VALUES: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "BOOL": lambda shape: RANDOM.integers(0, 2, shape).astype(bool),
    "INT8": lambda shape: numbers("int8", shape),
    "INT16": lambda shape: numbers("int16", shape),
    "INT32": lambda shape: numbers("int32", shape),
    "INT64": lambda shape: numbers("int64", shape),
    "UINT8": lambda shape: numbers("uint8", shape),
    "UINT16": lambda shape: numbers("uint16", shape),
    "UINT32": lambda shape: numbers("uint32", shape),
    "UINT64": lambda shape: numbers("uint64", shape),
    "FP16": lambda shape: numbers("float16", shape),
    "FP32": lambda shape: numbers("float32", shape),
    "FP64": lambda shape: numbers("float64", shape),
    "BYTES": lambda shape: np.array([f"text {i} é" for i in range(int(np.prod(shape)))], dtype=object).reshape(shape),
}


def serve(up: Up, name: str, model: Any, directory: Path) -> str:
    """Push and deploy; an access token."""

    async def publish() -> str:
        async with up.admin() as plane:
            path = directory / f"{name}.onnx"
            path.write_bytes(model.SerializeToString())
            await plane.artifact.push(name, path)
            await plane.inference.deploy(name)
            return await plane.auth.access_token()

    return asyncio.run(publish())


def tensors(values: dict[str, Any]) -> list[Any]:
    made = []
    for name, array in values.items():
        tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def raw(result: Any) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each output."""
    response = result.get_response()
    contents = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: (output.datatype, list(output.shape), content) for output, content in contents}


def direct(up: Up, name: str, values: dict[str, Any]) -> Any:
    with triton.InferenceServerClient(up.endpoints["triton"]) as client:
        return raw(client.infer(name, tensors(values), headers=dict([up.triton_header])))


def through(up: Up, token: str, name: str, values: dict[str, Any]) -> Any:
    with triton.InferenceServerClient(up.endpoints["inference"]) as client:
        return raw(client.infer(name, tensors(values), headers={"authorization": f"Bearer {token}"}))


def through_aio(up: Up, token: str, name: str, values: dict[str, Any]) -> Any:
    async def infer() -> Any:
        async with triton_aio.InferenceServerClient(up.endpoints["inference"]) as client:
            return raw(await client.infer(name, tensors(values), headers={"authorization": f"Bearer {token}"}))

    return asyncio.run(infer())


@pytest.mark.parametrize("datatype", VALUES)
def test_each_type_with_free_dimensions_is_bit_identical(up: Up, datatype: str, tmp_path: Path) -> None:
    name = f"identity-{datatype.lower()}"
    token = serve(up, name, identity(datatype, ["n", "m"]), tmp_path)
    for shape in ((1, 3), (4, 1), (2, 5)):
        values = {"x": VALUES[datatype](shape)}
        expected = direct(up, name, values)
        assert through(up, token, name, values) == expected
        assert through_aio(up, token, name, values) == expected


def test_several_inputs_and_outputs_are_bit_identical(up: Up, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["a", "b"], ["product"]),
        helper.make_node("Identity", ["text"], ["echo"]),
    ]
    inputs = [tensor("a", "FP32", ["n", "m"]), tensor("b", "FP32", ["m"]), tensor("text", "BYTES", ["k"])]
    outputs = [tensor("product", "FP32", ["n", "m"]), tensor("echo", "BYTES", ["k"]), tensor("sum", "FP32", ["n", "m"])]
    token = serve(up, "several", model(nodes, inputs, outputs), tmp_path)
    values = {"a": VALUES["FP32"]((3, 2)), "b": VALUES["FP32"]((2,)), "text": VALUES["BYTES"]((4,))}
    expected = direct(up, "several", values)
    assert set(expected) == {"product", "echo", "sum"}
    assert through(up, token, "several", values) == expected
    assert through_aio(up, token, "several", values) == expected


def test_streams_answer_in_order_and_bit_identical(up: Up, tmp_path: Path) -> None:
    token = serve(up, "streamed", identity("FP32", ["n", "m"]), tmp_path)
    inputs = [{"x": VALUES["FP32"]((1, size))} for size in range(1, 20)]

    async def stream() -> list[Any]:
        async def requests() -> Any:
            for values in inputs:
                yield {"model_name": "streamed", "inputs": tensors(values)}

        async with triton_aio.InferenceServerClient(up.endpoints["inference"]) as client:
            headers = {"authorization": f"Bearer {token}"}
            return [
                raw(result) async for result, error in client.stream_infer(requests(), headers=headers) if not error
            ]

    answers = asyncio.run(stream())
    assert answers == [direct(up, "streamed", values) for values in inputs]


def test_a_bad_shape_is_refused_before_triton_and_the_mesh_goes_on(up: Up, tmp_path: Path) -> None:
    token = serve(up, "strict", identity("FP32", ["n", 4]), tmp_path)
    with pytest.raises(InferenceServerException, match=r"inputs\[0\].shape must fit \[-1, 4\]"):
        through(up, token, "strict", {"x": VALUES["FP32"]((1, 3))})
    with pytest.raises(InferenceServerException, match=r"inputs\[0\].datatype must be FP32"):
        through(up, token, "strict", {"x": VALUES["FP64"]((1, 4))})
    through(up, token, "strict", {"x": VALUES["FP32"]((1, 4))})


def test_a_model_that_is_not_there_is_not_ready(up: Up, tmp_path: Path) -> None:
    token = serve(up, "there", identity("FP32", ["n"]), tmp_path)
    headers = {"authorization": f"Bearer {token}"}
    with triton.InferenceServerClient(up.endpoints["inference"]) as client:
        assert client.is_model_ready("there", headers=headers)
        assert not client.is_model_ready("there", "7", headers=headers)
        assert not client.is_model_ready("nope", headers=headers)


def test_metadata_of_a_version_that_is_not_served_says_so(up: Up, tmp_path: Path) -> None:
    token = serve(up, "of-one-version", identity("FP32", ["n"]), tmp_path)
    with triton.InferenceServerClient(up.endpoints["inference"]) as client:
        headers = {"authorization": f"Bearer {token}"}
        assert client.get_model_metadata("of-one-version", "1", headers=headers).versions == ["1"]
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.get_model_metadata("of-one-version", "99", headers=headers)


def test_the_server_is_ready_after_models_were_loaded_and_removed(up: Up, tmp_path: Path) -> None:
    token = serve(up, "first", identity("FP32", ["n"]), tmp_path)
    headers = {"authorization": f"Bearer {token}"}
    with triton.InferenceServerClient(up.endpoints["inference"]) as client:
        assert client.is_server_ready(headers=headers)
    with triton.InferenceServerClient(up.endpoints["triton"]) as client:
        assert client.is_server_ready(headers=dict([up.triton_header]))


def test_a_name_with_a_slash_is_not_judged_as_its_last_part(up: Up, tmp_path: Path) -> None:
    token = serve(up, "slashed", identity("FP32", ["n"]), tmp_path)
    headers = {"authorization": f"Bearer {token}"}
    with triton.InferenceServerClient(up.endpoints["inference"]) as client:
        for ask in (client.is_model_ready, client.get_model_metadata, client.get_model_config):
            with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
                ask("x/slashed", headers=headers)


def test_repository_and_shared_memory_calls_are_refused(up: Up, tmp_path: Path) -> None:
    token = serve(up, "plain", identity("FP32", ["n"]), tmp_path)
    headers = {"authorization": f"Bearer {token}"}
    with triton.InferenceServerClient(up.endpoints["inference"]) as client:
        refused: list[Callable[[], Any]] = [
            lambda: client.get_model_repository_index(headers=headers),
            lambda: client.load_model("plain", headers=headers),
            lambda: client.unload_model("plain", headers=headers),
            lambda: client.register_system_shared_memory("r", "/r", 8, headers=headers),
            lambda: client.get_cuda_shared_memory_status(headers=headers),
            lambda: client.get_trace_settings(headers=headers),
            lambda: client.get_log_settings(headers=headers),
        ]
        for call in refused:
            with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
                call()


def test_triton_itself_refuses_calls_without_its_header(up: Up) -> None:
    with triton.InferenceServerClient(up.endpoints["triton"]) as client, pytest.raises(InferenceServerException):
        client.get_server_metadata()
