"""What a run of the command leaves, and how tests run it."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Result:
    """What one run of the command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error on standard error, as JSON."""
        return json.loads(self.err)["error"]


Cli = Callable[..., Awaitable[Result]]
