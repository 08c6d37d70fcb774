"""What a worker and the process that loads one model for it say to each other, as JSON lines over pipes."""

import base64
import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LoadJob", "LoadOutcome"]

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LoadJob:
    """Which bytes go where. `head` is the request up to them; `timeout`, in seconds, is Triton's for the load."""

    artifact: str
    model_version: str
    digest: str
    size: int
    triton: str
    triton_metadata: Metadata
    head: bytes
    timeout: float

    def to_line(self) -> bytes:
        """The first line on the child's standard input. It holds secrets, so it stands in no argv."""
        return json.dumps(asdict(self) | {"head": base64.b64encode(self.head).decode()}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "LoadJob":
        """The reverse."""
        fields: dict[str, Any] = json.loads(line)
        metadata = tuple((key, value) for key, value in fields.pop("triton_metadata"))
        return cls(head=base64.b64decode(fields.pop("head")), triton_metadata=metadata, **fields)


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """The last line of the child: `loaded`, or of whom it failed and how.

    `artifact` is the reason of an error of ours; `triton` is the name of a gRPC status, and `detail` its text.
    """

    loaded: bool = False
    artifact: str = ""
    triton: str = ""
    detail: str = ""
