import json

from inferplane.server.inference.formats.onnx import model_config, model_files
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


def test_native_needs_the_model_alone() -> None:
    assert model_files(3, b"onnx", native=True) == {"file:3/model.onnx": b"onnx"}


def test_shim_comes_with_the_model_and_imports_nothing_of_ours() -> None:
    files = model_files(3, b"onnx", native=False)
    assert files["file:3/model.onnx"] == b"onnx"
    assert b"class TritonPythonModel" in files["file:3/model.py"]
    assert b"import inferplane" not in files["file:3/model.py"]
    assert b"from inferplane" not in files["file:3/model.py"]
