"""Inputs from JSON and .npy files, outputs as JSON and .npy files."""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inferplane.client.names import invalid
from inferplane.client.tensors import DTYPES, Array
from inferplane.common.v1.tensor_pb2 import TensorSpec

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def from_npy(items: Sequence[str]) -> dict[str, Array]:
    """Read `NAME=FILE.npy` items; raises OSError or InvalidArgument, and runs nothing that a file holds."""
    arrays: dict[str, Array] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not (name and equals and file):
            raise invalid("--input", f"{item!r} is not NAME=FILE.npy")
        try:
            loaded = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise invalid(f"--input {name}", f"{file} is not an .npy file of plain values: {error}") from error
        if not isinstance(loaded, np.ndarray):
            raise invalid(f"--input {name}", f"{file} holds several arrays; save one as .npy")
        arrays[name] = loaded
    return arrays


def from_json(text: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Read `{"input": nested lists}`, or bare nested lists for a single input, typed by the signature.

    Floats may be the texts NaN, Infinity and -Infinity, elements of BYTES `{"base64": …}`. Raises InvalidArgument.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise invalid("--input", f"not JSON: {error}") from error
    if not isinstance(content, dict):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise invalid("--input", f"the deployment takes several inputs, so name each: {names}")
        content = {specs[0].name: content}
    by_name = {spec.name: spec for spec in specs}
    unknown = sorted(content.keys() - by_name.keys())
    if unknown:
        raise invalid("--input", f"no such inputs: {', '.join(unknown)}; there are {', '.join(by_name)}")
    return {name: _array(by_name[name], values) for name, values in content.items()}


def _array(spec: TensorSpec, values: Any) -> Array:
    shape = _shape(spec.name, values)
    read = _reader(spec)
    flat = [read(value) for value in _flatten(values)]
    if spec.datatype == "BYTES":
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
    else:
        array = np.array(flat, dtype=DTYPES[spec.datatype])
    return array.reshape(shape)


def _shape(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        return ()
    inner = {_shape(name, value) for value in values}
    if len(inner) > 1:
        raise invalid(name, "the nested lists are not all of one length")
    return (len(values), *(inner.pop() if inner else ()))


def _flatten(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [leaf for value in values for leaf in _flatten(value)]


def _reader(spec: TensorSpec) -> Callable[[Any], Any]:
    if spec.datatype == "BYTES":
        return lambda value: _bytes(spec.name, value)
    if spec.datatype not in DTYPES:
        raise invalid(spec.name, f"{spec.datatype} is a datatype that this client does not know")
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "b":
        return lambda value: _checked(spec, value, isinstance(value, bool))
    if dtype.kind == "f":
        return lambda value: _float(spec, value)
    bounds = np.iinfo(dtype)
    return lambda value: _checked(spec, value, type(value) is int and int(bounds.min) <= value <= int(bounds.max))


def _checked(spec: TensorSpec, value: Any, fits: bool) -> Any:
    if not fits:
        raise invalid(spec.name, f"{json.dumps(value)} is no {spec.datatype}")
    return value


def _float(spec: TensorSpec, value: Any) -> float:
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    return float(_checked(spec, value, isinstance(value, int | float) and not isinstance(value, bool)))


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and isinstance(value.get("base64"), str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except binascii.Error as error:
            raise invalid(name, f"not base64: {error}") from error
    raise invalid(name, f"{json.dumps(value)} is neither a text nor an object with base64")


def to_json(array: Array) -> Any:
    """Give an array as nested lists that JSON can carry and `from_json` can read."""
    return _plain(array.tolist())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value


def to_npy(outputs: Mapping[str, Array], folder: Path) -> dict[str, str]:
    """Write each output to a file of its own; gives the paths. BYTES become numpy's fixed-width bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    for name, array in outputs.items():
        # An output's name comes from the model and must not lead out of the folder.
        path = folder / f"{_UNSAFE.sub('_', name).lstrip('.') or 'output'}.npy"
        np.save(path, array.astype("S") if array.dtype.kind == "O" else array, allow_pickle=False)
        paths[name] = str(path)
    return paths
