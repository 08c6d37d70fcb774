"""How a command of the client is declared: a function of the invocation and its own options."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from inferplane.cli.invocation import Invocation

_Function = TypeVar("_Function", bound=Callable[..., None])

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
READY_FILE_HELP = "The mesh of this ready file, not the saved profile."
ReadyFileOption = Annotated[Path | None, typer.Option("--ready-file", metavar="FILE", help=READY_FILE_HELP)]

_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_READY_FILE = inspect.Parameter("ready_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ReadyFileOption)
_JSON = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)


def command(app: typer.Typer, name: str) -> Callable[[_Function], _Function]:
    """Add a command to `app`: a function that takes the Invocation first, then typer's arguments and options.

    It gets `--ready-file` and `--json` besides.
    """

    def register(function: _Function) -> _Function:
        def run(**options: Any) -> None:
            invocation = options.pop("context").ensure_object(Invocation)
            invocation.as_json = options.pop("as_json") or invocation.as_json
            invocation.ready_file = options.pop("ready_file") or invocation.ready_file
            function(invocation, **options)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
        _take_signature(run, [*parameters, _READY_FILE, _JSON, _CONTEXT])
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


def _take_signature(function: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    # typer reads the options from the signature, and their types from the annotations.
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # functions do take one
    function.__annotations__ = {item.name: item.annotation for item in parameters}
