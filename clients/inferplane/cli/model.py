"""`model push`, `model list`, `model show`, `model delete`, `model download`, `model alias`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from inferplane.cli import records
from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.cli.progress import transfer
from inferplane.client import names

app = typer.Typer(add_completion=False, name="model", help="Push, download and list models.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]


@command(app, "push")
def push(
    invocation: Invocation,
    name: _Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The model's file, such as model.onnx.")],
    alias: Annotated[str | None, typer.Option("--alias", help="Point this alias at the new version.")] = None,
    label_output: Annotated[
        str, typer.Option("--label-output", metavar="OUTPUT", help="The output that holds the predicted class.")
    ] = "",
    description: Annotated[str, typer.Option("--description", help="What a new model is for.")] = "",
) -> None:
    """Upload a file as the model's next version; a push that broke off goes on where it stood."""
    names.model_id(name)
    if alias is not None:
        names.alias_id(alias)
    with invocation.plane() as plane:
        with transfer(invocation, f"push {name}") as progress:
            pushed = plane.artifact.push(
                name, path, description=description, label_output=label_output, progress=progress
            )
        record = records.version(pushed)
        if alias is not None:
            plane.artifact.set_alias(name, alias, record["version"])
            record["alias"] = alias
    pointed = f", {alias} points at it" if alias else ""
    invocation.done(record, f"Pushed {name}:{record['version']} ({record['digest']}){pointed}.")


@command(app, "list")
def list_models(invocation: Invocation) -> None:
    """List the models that you may see, by name."""
    with invocation.plane() as plane:
        models = [records.model(model) for model in plane.artifact.list_models()]
    columns = {"name": "Model", "description": "Description", "create_time": "Created", "creator": "By"}
    invocation.table(models, columns)


@command(app, "show")
def show(invocation: Invocation, name: _Name) -> None:
    """Show a model with its versions, newest first, and its aliases."""
    with invocation.plane() as plane:
        model = records.model(plane.artifact.get_model(name))
        versions = [records.version(version) for version in plane.artifact.list_versions(name)]
        aliases = [records.alias(alias) for alias in plane.artifact.list_aliases(name)]
    if invocation.as_json:
        invocation.document({**model, "versions": versions, "aliases": aliases})
        return
    invocation.table([_row(version, aliases) for version in versions], _VERSION_COLUMNS)


@command(app, "delete")
def delete(
    invocation: Invocation,
    name: _Name,
    force: Annotated[bool, typer.Option("--force", help="Its uploads too, whoever made them.")] = False,
) -> None:
    """Delete a model that has no versions."""
    with invocation.plane() as plane:
        plane.artifact.delete_model(name, force=force)
    invocation.done({"model": name}, f"Deleted {name}.")


@command(app, "download")
def download(
    invocation: Invocation,
    model: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Bare: the newest version.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to write the file.")],
) -> None:
    """Write the bytes of a version to a file, which appears whole and verified or not at all."""
    names.ModelRef.parse(model)
    with invocation.plane() as plane, transfer(invocation, f"download {model}") as progress:
        version = records.version(plane.artifact.download(model, path, progress=progress))
    done = f"Wrote {version['model']}:{version['version']} to {path}; its digest is {version['digest']}."
    invocation.done({**version, "path": str(path)}, done)


@command(app, "alias")
def set_alias(
    invocation: Invocation,
    name: _Name,
    alias: Annotated[str, typer.Argument(help="The alias, such as production.")],
    version: Annotated[int, typer.Argument(help="The version it shall point at.")],
) -> None:
    """Point an alias at a version, creating it if it is new."""
    with invocation.plane() as plane:
        moved = records.alias(plane.artifact.set_alias(name, alias, version))
    invocation.done({"model": name, **moved}, f"{name}@{alias} points at {name}:{version}.")


_VERSION_COLUMNS = {
    "version": "Version",
    "aliases": "Aliases",
    "digest": "Digest",
    "size": "Bytes",
    "inputs": "Inputs",
    "outputs": "Outputs",
    "create_time": "Created",
    "creator": "By",
}


def _row(version: dict[str, Any], aliases: list[dict[str, Any]]) -> dict[str, Any]:
    signature = version["signature"]
    return {
        **version,
        "aliases": ", ".join(alias["alias"] for alias in aliases if alias["version"] == version["version"]),
        "inputs": "; ".join(records.describe(spec) for spec in signature["inputs"]),
        "outputs": "; ".join(records.describe(spec) for spec in signature["outputs"]),
    }
