"""`feedback`."""

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.client import names
from inferplane.client.names import invalid
from inferplane.client.reporting import IdKind

app = typer.Typer(add_completion=False)

_HEADERS: dict[str, IdKind] = {"prediction_id": "prediction", "client_request_id": "client"}


@command(app, "feedback")
def feedback(
    invocation: Invocation,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Where the predictions came from.")],
    prediction: Annotated[
        str | None, typer.Argument(metavar="ID", help="The prediction's id, or your own id of the request.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="LABEL", help="The right classes, one for each row.")
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Lines of ID,LABEL,…; a first line that begins with prediction_id or client_request_id says "
            "what the ids are; - for stdin.",
        ),
    ] = None,
) -> None:
    """Tell the right answers of predictions, from which accuracy is measured."""
    names.model_id(deployment, "deployment")
    if (csv_file is None) == (prediction is None or not labels):
        raise typer.BadParameter("give either ID and LABELs or --csv")
    kind: IdKind = "auto"
    if csv_file is not None:
        answers, kind = _read_csv(csv_file)
    else:
        answers = {prediction or "": labels or []}
    with invocation.plane() as plane:
        stored = plane.reporting.submit_feedback(deployment, answers, ids=kind)
    invocation.done({"given": len(answers), "stored": stored}, f"{len(answers)} given, {stored} of them new.")


def _read_csv(path: Path) -> tuple[dict[str, list[str]], IdKind]:
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    rows = [row for row in csv.reader(text.splitlines()) if row]
    kind: IdKind = "auto"
    if rows and rows[0][0] in _HEADERS:
        kind = _HEADERS[rows.pop(0)[0]]
    answers: dict[str, list[str]] = {}
    for number, (key, *labels) in enumerate(rows, start=1):
        if not key or not labels or key in answers:
            raise invalid("--csv", f"row {number} needs an id that no other row has, and at least one label")
        answers[key] = labels
    if not answers:
        raise invalid("--csv", f"{path} holds no rows")
    return answers, kind
