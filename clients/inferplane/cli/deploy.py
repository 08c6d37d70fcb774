"""`deploy`, `undeploy`, `deployments`."""

from typing import Annotated

import typer

from inferplane.cli import records
from inferplane.cli.command import command
from inferplane.cli.deployment import list_deployments
from inferplane.cli.invocation import Invocation
from inferplane.client import names

app = typer.Typer(add_completion=False)


@command(app, "deploy")
def deploy(
    invocation: Invocation,
    model: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Bare: the newest version.")],
    name: Annotated[str | None, typer.Option("--name", help="The deployment's name; the model's by default.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it answers.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="How many seconds to wait.")] = 60.0,
) -> None:
    """Serve a version of a model; on a name that serves another one, replace it without an outage."""
    with invocation.plane() as plane:
        deployment = plane.inference.deploy(model, name=name, wait=wait, timeout=timeout)
    record = records.deployment(deployment)
    if record["incoming"]:
        text = f"{record['name']} serves {record['model_version']} until {record['incoming']} is loaded."
    else:
        text = f"{record['name']} serves {record['model_version']}: {record['state']}."
    invocation.done(record, text)


@command(app, "undeploy")
def undeploy(
    invocation: Invocation, name: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Which one.")]
) -> None:
    """Stop serving a deployment; calls that were accepted finish."""
    names.model_id(name, "deployment")
    with invocation.plane() as plane:
        plane.inference.undeploy(name)
    invocation.done({"name": name, "deleted": True}, f"{name} is served no more.")


command(app, "deployments")(list_deployments)
