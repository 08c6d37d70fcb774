"""How the server's commands end when something is wrong: one sentence and no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import typer
from pydantic import ValidationError
from rich.text import Text

from inferplane.server.commands.terminal import say
from inferplane.server.embedded.postgres import EmbeddedPostgresError
from inferplane.server.embedded.triton import EmbeddedTritonError
from inferplane.server.errors import InferplaneError
from inferplane.server.processes.ports import PortInUseError
from inferplane.server.processes.supervisor import WorkerStartError

__all__ = ["fail", "reported"]

EXPECTED: tuple[type[Exception], ...] = (
    EmbeddedPostgresError,
    EmbeddedTritonError,
    OSError,
    PortInUseError,
    ValueError,
    WorkerStartError,
)


def fail(message: str) -> Never:
    """Say what is wrong and what to do, and exit with status 1."""
    say(Text.assemble(("error:", "red"), " ", message))
    raise typer.Exit(1)


@contextmanager
def reported(*more: type[Exception]) -> Iterator[None]:
    """Turn expected failures, and those in `more`, into `fail`."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        fail(f"the settings are not valid: {problems}")
    except InferplaneError as error:
        # Loaded when needed: it loads gRPC, and `up` lives for months (docs/decisions/0006).
        from inferplane.server.rpc.errors import public_message

        fail(public_message(error))
    except (*EXPECTED, *more) as error:
        fail(str(error))
