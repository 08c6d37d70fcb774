"""What an ONNX file says about itself, found out in a process of its own, because the file may be hostile.

Run as a program, this module is that process: the file on standard input, the answer on standard output.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.tensors import DATATYPES, MAX_SIGNATURE_BYTES, Signature, TensorSpec, signature_message

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_MODEL_BYTES", "inspect_onnx"]

MAX_MODEL_BYTES = 2**31 - 1
"""A protobuf message is never larger, nor is an ONNX file that holds all of its tensors."""

_MAX_TENSORS = 1024
_MAX_NAME = 256
_MAX_RANK = 32
_MAX_SHOWN_NAME = 64
# Above what a signature can need as JSON: no byte of it takes more than six characters there.
_MAX_ANSWER_BYTES = 16 * MAX_SIGNATURE_BYTES
_START_SECONDS = 60.0
_GIB = 2**30
# The parser asks for memory in blocks of growing size; what is left when one is denied is less than this.
_NEAR_LIMIT = 16 * 2**20
_READY = b"ready\n"
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

Content = Mapping[str, Sequence[tuple[str, str, Sequence[int]]]]
"""`inputs` and `outputs`, as names, datatypes and shapes."""

_INVALID = ErrorReason.ERROR_REASON_MODEL_FORMAT_INVALID
_UNSUPPORTED = ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED


async def inspect_onnx(
    chunks: AsyncIterator[bytes],
    *,
    max_memory: int = 16 * _GIB,
    cpu_seconds: int = 60,
    timeout: float = 120.0,
) -> Signature:
    """The signature of the ONNX file whose bytes `chunks` gives, checked against the ONNX specification.

    The file is parsed in a fresh process that may take four times the file's size and 1 GiB, at most
    `max_memory` bytes, and `cpu_seconds`; `timeout` bounds, in seconds, what it takes after the last byte.
    Inputs are those that a caller must give, hence not the initializers.

    Raises InferplaneError with metadata `detail`: MODEL_FORMAT_INVALID if the bytes are no valid ONNX model
    or cannot be read within these bounds; MODEL_UNSUPPORTED for external data, other things than tensors at
    the edge, element types that Triton lacks, unknown ranks, signatures above MAX_SIGNATURE_BYTES, and
    specifications newer than ours. Raises RuntimeError if the process cannot start.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", __name__, str(max_memory), str(cpu_seconds)),
        env=_ENVIRONMENT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_MAX_ANSWER_BYTES,
        start_new_session=True,
    )
    try:
        await _until_started(process)
        await _feed(process, chunks, timeout)
        answer = await _answer(process, cpu_seconds, timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        # Reads the pipes to their end, without which their transports stay open.
        await process.communicate()
    content = json.loads(answer)
    if "reason" in content:
        raise _refused(ErrorReason.Value(content["reason"]), content["detail"])
    return _signature(content)


async def _until_started(process: asyncio.subprocess.Process) -> None:
    """Return once the process has imported onnx: what fails earlier is our installation's fault."""
    assert process.stdout is not None  # noqa: S101 - for the type checker: both are pipes
    assert process.stderr is not None  # noqa: S101 - as above
    started = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            started = await process.stdout.readline()
    if started != _READY:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        reason = (await process.stderr.read()).decode("utf-8", "replace")[-2000:]
        raise RuntimeError(f"the ONNX inspector cannot start: {reason}")


async def _feed(process: asyncio.subprocess.Process, chunks: AsyncIterator[bytes], timeout: float) -> None:
    assert process.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
    size = 0
    with contextlib.suppress(ConnectionError):
        async for chunk in chunks:
            size += len(chunk)
            if size > MAX_MODEL_BYTES:
                raise _refused(_INVALID, "the file is larger than 2 GiB, which no ONNX file can be")
            process.stdin.write(chunk)
            try:
                async with asyncio.timeout(timeout):
                    await process.stdin.drain()
            except TimeoutError:
                raise _refused(_INVALID, f"the file takes longer than {timeout:g} s to read") from None
    process.stdin.close()


async def _answer(process: asyncio.subprocess.Process, cpu_seconds: int, timeout: float) -> bytes:
    assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
    try:
        async with asyncio.timeout(timeout):
            answer = await process.stdout.readline()
            if answer.endswith(b"\n"):
                return answer
            status = await process.wait()
    except TimeoutError:
        raise _refused(_INVALID, f"the file takes longer than {timeout:g} s to read") from None
    if status == -signal.SIGXCPU:
        raise _refused(_INVALID, f"the file takes more than {cpu_seconds} s of processor time to read")
    raise _refused(_INVALID, "the file crashes the ONNX parser")


def _signature(content: Content) -> Signature:
    inputs, outputs = (
        tuple(TensorSpec(name, datatype, tuple(shape)) for name, datatype, shape in content[side])
        for side in ("inputs", "outputs")
    )
    return Signature(inputs, outputs)


def _refused(reason: ErrorReason.ValueType, detail: str) -> InferplaneError:
    return InferplaneError(reason, detail=detail)


def _main(max_memory: int, cpu_seconds: int) -> None:
    """The isolated process: read standard input, write one line of JSON."""
    # Imported here and not above, because the server's process must not import it; here and not later,
    # because its libraries need what the limits below forbid.
    import onnx.checker  # noqa: F401 - for the modules that use it

    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    # Pages that the imports took do not count against the file.
    base = _virtual_memory("VmSize")
    _limit(resource.RLIMIT_AS, base + max_memory)
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    # Nobody reads standard error from here on, and a full pipe would block.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        data = sys.stdin.buffer.read()
        limit = base + min(max_memory, 4 * len(data) + _GIB)
        _limit(resource.RLIMIT_AS, limit)
        content: Mapping[str, object] = _describe(data, limit)
    except InferplaneError as error:
        content = {"reason": ErrorReason.Name(error.reason), "detail": error.metadata["detail"]}
    except MemoryError:
        content = {"reason": ErrorReason.Name(_INVALID), "detail": "the file takes too much memory to read"}
    sys.stdout.buffer.write(json.dumps(content).encode() + b"\n")
    sys.stdout.buffer.flush()
    # Freeing what a hostile file made takes time and may crash; the answer is out.
    os._exit(0)


def _limit(what: int, soft: int, hard: int | None = None) -> None:
    # A container may have set a lower one already, which only root could raise.
    _, present = resource.getrlimit(what)
    hard = soft if hard is None else hard
    if present != resource.RLIM_INFINITY:
        hard = min(hard, present)
    resource.setrlimit(what, (min(soft, hard), hard))


def _virtual_memory(field: str) -> int:
    """A size in bytes from proc_pid_status(5)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def _describe(data: bytes, limit: int) -> Content:
    import onnx

    _check_container(data)
    try:
        model = onnx.load_model_from_string(data)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whichever way the parser fails, the bytes are no ONNX model
        # The parser reports a failed allocation as if the bytes were wrong.
        if _virtual_memory("VmPeak") > limit - _NEAR_LIMIT:
            raise MemoryError from None
        raise _refused(_INVALID, "the file is not a complete ONNX protobuf message") from None
    _check_model(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers.update(tensor.values.name for tensor in model.graph.sparse_initializer)
    inputs = [value for value in model.graph.input if value.name not in initializers]
    signature = {"inputs": _tensors("input", inputs), "outputs": _tensors("output", list(model.graph.output))}
    _check_signature_size(signature)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _all_tensors(model)):
        raise _refused(_UNSUPPORTED, "the model keeps tensors in other files (external data)")
    del model
    try:
        onnx.checker.check_model(data)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - its texts name paths and sources, so that only the fact counts
        raise _refused(_INVALID, "the model breaks the ONNX specification: onnx.checker refuses it") from None
    return signature


def _check_container(data: bytes) -> None:
    if not data:
        raise _refused(_INVALID, "the file is empty")
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise _refused(_INVALID, "the file is a ZIP archive, not an ONNX model")
    if data[0] == 0x80 and data[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        raise _refused(_INVALID, "the file is a Python pickle, not an ONNX model")


def _check_model(model: "onnx.ModelProto") -> None:
    import onnx

    if model.ir_version < 1:
        raise _refused(_INVALID, "the file states no ir_version")
    if model.ir_version > onnx.IR_VERSION:
        detail = f"ir_version {model.ir_version} is newer than {onnx.IR_VERSION}, the newest supported one"
        raise _refused(_UNSUPPORTED, detail)
    if not model.HasField("graph"):
        raise _refused(_INVALID, "the model has no graph")
    if not model.opset_import:
        raise _refused(_INVALID, "the model imports no opset")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in {"", "ai.onnx"} and opset.version > newest:
            raise _refused(_UNSUPPORTED, f"opset {opset.version} is newer than {newest}, the newest supported one")


def _tensors(side: str, values: "list[onnx.ValueInfoProto]") -> list[tuple[str, str, list[int]]]:
    if side == "output" and not values:
        raise _refused(_INVALID, "the model has no output")
    if len(values) > _MAX_TENSORS:
        raise _refused(_UNSUPPORTED, f"the model has more than {_MAX_TENSORS} {side}s")
    if len({value.name for value in values}) != len(values):
        raise _refused(_INVALID, f"two {side}s have the same name")
    return [_tensor(side, value) for value in values]


def _check_signature_size(content: Content) -> None:
    size = signature_message(_signature(content)).ByteSize()
    if size > MAX_SIGNATURE_BYTES:
        detail = (
            f"the names, types and shapes of all inputs and outputs take {size} bytes, and {MAX_SIGNATURE_BYTES} is the"
            " limit: give the model fewer of them, shorter names or fewer dimensions"
        )
        raise _refused(_UNSUPPORTED, detail)


def _tensor(side: str, value: "onnx.ValueInfoProto") -> tuple[str, str, list[int]]:
    if not value.name:
        raise _refused(_INVALID, f"an {side} has no name")
    if len(value.name) > _MAX_NAME or not value.name.isprintable():
        detail = f"the name of an {side} is longer than {_MAX_NAME} characters or not printable"
        raise _refused(_UNSUPPORTED, detail)
    what = f"{side} '{value.name[:_MAX_SHOWN_NAME]}'"
    kind = value.type.WhichOneof("value")
    if kind is None:
        raise _refused(_INVALID, f"{what} has no type")
    if kind != "tensor_type":
        raise _refused(_UNSUPPORTED, f"{what} is no tensor but of kind {kind.removesuffix('_type')}")
    tensor = value.type.tensor_type
    datatype = _datatype(what, tensor.elem_type)
    if not tensor.HasField("shape"):
        raise _refused(_UNSUPPORTED, f"{what} does not state its number of dimensions")
    if len(tensor.shape.dim) > _MAX_RANK:
        raise _refused(_UNSUPPORTED, f"{what} has more than {_MAX_RANK} dimensions")
    return value.name, datatype, [_dimension(what, dim) for dim in tensor.shape.dim]


def _datatype(what: str, number: int) -> str:
    import onnx

    types = onnx.TensorProto
    names: dict[int, str] = {
        types.FLOAT16: "FP16",
        types.FLOAT: "FP32",
        types.DOUBLE: "FP64",
        types.STRING: "BYTES",
    }
    if number in names:
        return names[number]
    name = types.DataType.Name(number) if number in types.DataType.values() else str(number)
    if name == "UNDEFINED":
        raise _refused(_INVALID, f"{what} has no element type")
    if name not in DATATYPES:
        raise _refused(_UNSUPPORTED, f"{what} has the element type {name.lower()}, which is not served")
    return name


def _dimension(what: str, dim: "onnx.TensorShapeProto.Dimension") -> int:
    if not dim.HasField("dim_value"):
        return -1
    if dim.dim_value == 0:
        raise _refused(_UNSUPPORTED, f"{what} has a dimension of size 0")
    # Some exporters write -1 for a free size.
    return max(dim.dim_value, -1)


def _all_tensors(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """Every stored tensor: in graphs, subgraphs, functions and training information."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += (training.initialization, training.algorithm)
    nodes = [node for function in model.functions for node in function.node]
    attributes = [attribute for function in model.functions for attribute in function.attribute_proto]
    while graphs or nodes or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _parts(graph.sparse_initializer)
            nodes.extend(graph.node)
        elif nodes:
            attributes.extend(nodes.pop().attribute)
        else:
            attribute = attributes.pop()
            yield from (attribute.t, *attribute.tensors)
            yield from _parts((attribute.sparse_tensor, *attribute.sparse_tensors))
            graphs.extend(attribute.graphs)
            if attribute.HasField("g"):
                graphs.append(attribute.g)


def _parts(tensors: "Iterable[onnx.SparseTensorProto]") -> "Iterator[onnx.TensorProto]":
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
