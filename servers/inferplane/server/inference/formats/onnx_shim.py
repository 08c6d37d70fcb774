"""A Triton model on onnxruntime, for a Triton that has the Python backend and no ONNX Runtime backend.

Triton imports this file as `model.py` from a version's folder, beside `model.onnx`. It runs in a process of
Triton's, so it imports nothing of Inferplane.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists inside Triton only

_MAX_THREADS = 4
_MAX_MESSAGE = 160
_LOGGED_FAILURES = 10
_LOOK_AFTER_CALLERS = 0.5


class TritonPythonModel:
    """Serves `model.onnx` tensor for tensor; a scalar travels as shape [1], which Triton demands.

    Outputs come in the model's own order, whatever order and number of them a request names. A run whose caller has
    left or whose time is over ends at the model's next node.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model. `args` are Triton's: `model_repository` is a path, `model_version` a number."""
        repository = Path(args["model_repository"])
        _record(args, loaded=False)
        self._name = args["model_name"]
        self._failures = 0
        self._session = ort.InferenceSession(
            str(repository / args["model_version"] / "model.onnx"),
            sess_options=_session_options(),
            providers=["CPUExecutionProvider"],
        )
        self._inputs = {spec.name: spec for spec in self._session.get_inputs()}
        self._outputs = [spec.name for spec in self._session.get_outputs()]
        self._callers = _Callers()
        _record(args, loaded=True)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request by itself, so that a bad one does not fail its neighbours."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            feed = {name: self._input(request, name) for name in self._inputs}
            # Triton gives the names as a set, which has another order in each process.
            requested = request.requested_output_names()
            names = [name for name in self._outputs if name in requested]
            with self._callers.watching(request) as options:
                try:
                    outputs = self._run(names, feed, options)
                except Exception:
                    if options.terminate:
                        return _refusal("the caller has left", pb_utils.TritonError.CANCELLED)
                    raise
            return pb_utils.InferenceResponse(outputs)
        except _RejectedError as rejection:
            return _refusal(str(rejection), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises concerns this request alone
            self._log(error)
            # With its reason: whoever runs the mesh finds it in the log, under the call's id.
            return _refusal(f"the model failed on this input: {_told(error)}", pb_utils.TritonError.INTERNAL)

    def _input(self, request: Any, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise _RejectedError(f"input '{name}' is missing")
        values = tensor.as_numpy()
        spec = self._inputs[name]
        if spec.type == "tensor(string)":
            values = _decode(name, values)
        # An empty list is a scalar's shape; Triton passed it as one element.
        return values.reshape(()) if spec.shape == [] else values

    def _run(self, names: list[str], feed: dict[str, Any], options: Any) -> list[Any]:
        try:
            outputs = self._session.run(names, feed, options)
        except (ort.capi.onnxruntime_pybind11_state.InvalidArgument, ValueError) as error:
            self._log(error)
            shapes = ", ".join(f"'{name}' {list(values.shape)}" for name, values in feed.items())
            raise _RejectedError(f"{_status_message(error)} (inputs: {shapes})") from error
        return [pb_utils.Tensor(name, _encode(values)) for name, values in zip(names, outputs, strict=True)]

    def _log(self, error: Exception) -> None:
        # A caller can fail as often as it likes; the log of the server must not grow with it.
        self._failures += 1
        if self._failures <= _LOGGED_FAILURES:
            print(f"{self._name}: {_told(error)}", file=sys.stderr, flush=True)  # noqa: T201 - Triton's log


class _Callers:
    """Ends a run that nobody waits for: some seconds after the caller's end or deadline its request is cancelled."""

    def __init__(self) -> None:
        self._current: tuple[Any, Any] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def watching(self, request: Any) -> Iterator[Any]:
        """The options to run `request` with."""
        options = ort.RunOptions()
        self._current = (request, options)
        try:
            yield options
        finally:
            # Once the answer is made, Triton must not be asked about the request any more.
            with self._lock:
                self._current = None

    def _look(self) -> None:
        before = None
        while True:
            time.sleep(_LOOK_AFTER_CALLERS)
            with self._lock:
                # Only of a run that has lasted since the last look, so that quick ones never pay for it.
                if self._current is not None and self._current is before:
                    request, options = self._current
                    options.terminate = request.is_cancelled()
                before = self._current


class _RejectedError(Exception):
    """The input is not one that the model takes."""


def _session_options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(1, min(_MAX_THREADS, len(os.sched_getaffinity(0))))
    options.inter_op_num_threads = 1
    # Threads that spin while they wait would take the processor from the other models of this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _record(args: dict[str, str], *, loaded: bool) -> None:
    """Tell the owner of an embedded Triton which process runs the model, and whether it is loaded."""
    records = os.environ.get("INFERPLANE_TRITON_FOLDERS")
    if records:
        told = {"pid": os.getpid(), "name": args["model_name"], "version": args["model_version"]}
        told["since"] = time.monotonic_ns() if loaded else 0
        (Path(records) / Path(args["model_repository"]).name).write_text(json.dumps(told))


def _decode(name: str, values: Any) -> Any:
    try:
        texts = [value.decode() for value in values.reshape(-1)]
    except UnicodeDecodeError:
        raise _RejectedError(f"input '{name}' holds bytes that are not UTF-8") from None
    return np.array(texts, dtype=object).reshape(values.shape)


def _encode(values: Any) -> Any:
    if values.dtype.kind in "OU":
        flat = [text.encode() for text in values.reshape(-1)]
        values = np.array(flat, dtype=object).reshape(values.shape)
    return values.reshape(1) if values.ndim == 0 else np.ascontiguousarray(values)


def _status_message(error: Exception) -> str:
    """What ONNX Runtime says of the inputs, without what it says of itself."""
    return " ".join(str(error).rpartition("Status Message: ")[2].split())[:_MAX_MESSAGE]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
