"""`predict`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from inferplane.cli import tensor_files
from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.client import names
from inferplane.client.inference import Prediction
from inferplane.client.names import invalid
from inferplane.client.sync import Inferplane
from inferplane.client.tensors import Array

app = typer.Typer(add_completion=False)


class Output(StrEnum):
    """How the answer is given."""

    TABLE = "table"
    JSON = "json"
    NPY = "npy"


@command(app, "predict")
def predict(
    invocation: Invocation,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Which deployment to ask.")],
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Where --output npy writes.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=FILE.npy|FILE.json|-", help="An input, or all; - is stdin."),
    ] = None,
    output: Annotated[
        Output | None, typer.Option("--output", "-o", help="table, json, or npy to write files into DIR.")
    ] = None,
    client_request_id: Annotated[
        str, typer.Option("--request-id", metavar="ID", help="An id of your own, by which feedback may name it.")
    ] = "",
) -> None:
    """Ask a deployment for a prediction.

    Give each input as NAME=FILE.npy, or all as one JSON file (or - for stdin): {"input": nested lists}, or for a
    single input just the nested lists.
    """
    names.model_id(deployment, "deployment")
    if not inputs:
        raise typer.BadParameter("give the inputs with --input")
    from_json = [item for item in inputs if "=" not in item]
    if from_json and len(inputs) > 1:
        raise typer.BadParameter("give either .npy files by name or one JSON file")
    if (output is Output.NPY) != (folder is not None):
        raise typer.BadParameter("DIR and --output npy go together")
    invocation.as_json = output is Output.JSON or invocation.as_json
    with invocation.plane() as plane:
        arrays = _from_json(plane, deployment, from_json[0]) if from_json else tensor_files.from_npy(inputs)
        prediction = plane.inference.predict(deployment, arrays, client_request_id=client_request_id)
    if folder is not None:
        files = tensor_files.to_npy(prediction.outputs, folder)
        invocation.done({**_record(prediction), "files": files}, f"{prediction.id}: wrote {', '.join(files.values())}")
    else:
        _show(invocation, prediction)


def _from_json(plane: Inferplane, deployment: str, file: str) -> dict[str, Array]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except UnicodeDecodeError:
        raise invalid("--input", "it is no JSON; .npy files are given as NAME=FILE.npy") from None
    return tensor_files.from_json(text, plane.inference.get(deployment).targets[0].signature.inputs)


def _record(prediction: Prediction) -> dict[str, Any]:
    return {
        "prediction_id": prediction.id,
        "model_version": prediction.model_version,
        "digest": prediction.digest,
    }


def _show(invocation: Invocation, prediction: Prediction) -> None:
    outputs = {name: tensor_files.to_json(array) for name, array in prediction.outputs.items()}
    if invocation.as_json:
        invocation.document({**_record(prediction), "outputs": outputs})
        return
    rows = max((len(values) for values in outputs.values() if isinstance(values, list)), default=1)
    records = [{name: _row(values, index) for name, values in outputs.items()} for index in range(rows)]
    invocation.table(records, {name: name for name in outputs})
    invocation.note(f"Prediction {prediction.id} by {prediction.model_version} ({prediction.digest})")


def _row(values: Any, index: int) -> Any:
    if not isinstance(values, list):
        return _rounded(values) if index == 0 else ""
    return _rounded(values[index]) if index < len(values) else ""


def _rounded(value: Any) -> Any:
    return [_rounded(item) for item in value] if isinstance(value, list) else _short_float(value)


def _short_float(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
