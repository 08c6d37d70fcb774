import json
from typing import Any

from hypothesis import given
from hypothesis.strategies import binary, dictionaries, text
from tritonclient.grpc import service_pb2

from inferplane.server.inference.formats.load_request import MAX_MESSAGE, request_head
from inferplane.server.inference.formats.onnx import largest_model, load_head, model_config
from inferplane.server.tensors import DATATYPES, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 4)), TensorSpec("s", "INT64", ())),
    outputs=(TensorSpec("label", "BYTES", (-1,)),),
)


def test_serves_exactly_the_version() -> None:
    config = json.loads(model_config("digits", 7, SIGNATURE, native=False))
    assert config["name"] == "digits"
    assert config["version_policy"] == {"specific": {"versions": [7]}}


def test_shapes_are_whole_and_a_scalar_has_one_element() -> None:
    config = json.loads(model_config("digits", 1, SIGNATURE, native=False))
    assert config["max_batch_size"] == 0
    assert config["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]},
        {"name": "s", "data_type": "TYPE_INT64", "dims": [1]},
    ]
    assert config["output"] == [{"name": "label", "data_type": "TYPE_STRING", "dims": [-1]}]


def test_backend_follows_native() -> None:
    native = json.loads(model_config("m", 1, SIGNATURE, native=True))
    shim = json.loads(model_config("m", 1, SIGNATURE, native=False))
    assert (native["backend"], native["instance_group"]) == (
        "onnxruntime",
        [{"kind": "KIND_AUTO", "count": 1}],
    )
    assert (shim["backend"], shim["instance_group"]) == ("python", [{"kind": "KIND_CPU", "count": 1}])


def test_every_datatype_has_a_type_of_triton() -> None:
    tensors = tuple(TensorSpec(name, name, (1,)) for name in sorted(DATATYPES))
    config = json.loads(model_config("m", 1, Signature(tensors, tensors), native=False))
    types = {tensor["name"]: tensor["data_type"] for tensor in config["input"]}
    assert types == {name: "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}" for name in DATATYPES}


def parsed(*, native: bool) -> Any:
    head = load_head("digits", 3, SIGNATURE, 4, native=native, digest="sha256:0")
    return service_pb2.RepositoryModelLoadRequest.FromString(head + b"onnx")


def test_native_needs_the_model_alone() -> None:
    parameters = parsed(native=True).parameters
    assert set(parameters) == {"config", "file:3/model.onnx"}
    assert parameters["file:3/model.onnx"].bytes_param == b"onnx"


def test_shim_comes_with_the_model_and_imports_nothing_of_ours() -> None:
    parameters = parsed(native=False).parameters
    shim = parameters["file:3/model.py"].bytes_param
    assert parameters["file:3/model.onnx"].bytes_param == b"onnx"
    assert b"class TritonPythonModel" in shim
    assert b"import inferplane" not in shim
    assert b"from inferplane" not in shim


def test_the_configuration_carries_the_digest() -> None:
    config = json.loads(parsed(native=False).parameters["config"].string_param)
    assert config["parameters"] == {"inferplane_digest": {"string_value": "sha256:0"}}


@given(name=text(), config=text(), files=dictionaries(text(), binary()), last=text(), content=binary(max_size=300))
def test_the_message_written_by_hand_is_the_one_that_protobuf_reads(
    name: str, config: str, files: dict[str, bytes], last: str, content: bytes
) -> None:
    message = service_pb2.RepositoryModelLoadRequest.FromString(
        request_head(name, config, files, last, len(content)) + content
    )
    wanted = {"config": config, **files, last: content}
    read = {
        key: value.string_param if value.WhichOneof("parameter_choice") == "string_param" else value.bytes_param
        for key, value in message.parameters.items()
    }
    assert (message.model_name, read) == (name, wanted)


def test_the_largest_model_fills_the_largest_message() -> None:
    size = largest_model("digits", 7, SIGNATURE)
    digest = "sha256:" + "0" * 64
    assert len(load_head("digits", 7, SIGNATURE, size, native=False, digest=digest)) + size == MAX_MESSAGE
