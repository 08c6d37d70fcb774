"""One run of the command: where the mesh is, and how results are shown."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferplane.client.sync import Inferplane

Record = Mapping[str, Any]


@dataclass
class Invocation:
    """What holds for the whole run, wherever on the command line it was said."""

    as_json: bool = False
    ready_file: Path | None = None

    def plane(self) -> "AbstractContextManager[Inferplane]":
        """Take the mesh of the ready file, else of the saved profile, with the saved credentials."""
        from inferplane.client.sync import Inferplane

        if self.ready_file is not None:
            return Inferplane.from_ready_file(self.ready_file)
        return Inferplane.from_profile()

    def plane_to_log_in_to(self, mesh: str | None) -> "AbstractContextManager[Inferplane]":
        """Take the mesh at `mesh` (HOST or HOST:PORT), else as `plane` does, else the one that `up` starts here."""
        from inferplane.client.endpoints import Endpoints
        from inferplane.client.errors import ConfigurationError
        from inferplane.client.sync import Inferplane
        from inferplane.client.tokens import FileStore

        if mesh is not None:
            host, _, port = mesh.rpartition(":") if mesh.rpartition(":")[2].isdecimal() else (mesh, "", "")
            endpoints = Endpoints.on(host, int(port)) if port else Endpoints.on(host)
        else:
            try:
                return self.plane()
            except ConfigurationError as error:
                if error.reason != "PROFILE_MISSING":
                    raise
            endpoints = Endpoints.on()
        return Inferplane.connect(endpoints, FileStore(endpoints))

    def document(self, document: Any) -> None:
        """Print one JSON document."""
        print(json.dumps(document, indent=2, ensure_ascii=False))

    def done(self, record: Record, text: str) -> None:
        """Say what was done: the record for programs, the text for people."""
        if self.as_json:
            self.document(record)
        else:
            print(plain(text))

    def table(self, records: Sequence[Record], columns: Mapping[str, str]) -> None:
        """Show records; `columns` are the keys to show to people and their headings."""
        if self.as_json:
            self.document(list(records))
            return
        _print_table(records, columns)

    def note(self, text: str) -> None:
        """Tell people something beside the result."""
        if not self.as_json:
            print(plain(text), file=sys.stderr)


def plain(value: Any) -> str:
    """Give a value as text that cannot steer the terminal it is printed on."""
    text = "" if value is None else str(value)
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _print_table(records: Sequence[Record], columns: Mapping[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for key, heading in columns.items():
        right = any(isinstance(record.get(key), int | float) for record in records)
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for record in records:
        table.add_row(*(Text(_cell(record.get(key))) for key in columns))
    # Into a file or a pipe, lines are as long as their content.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = plain(value)
    # The whole digest is in the JSON; a table has room for what tells two of them apart.
    return text[:19] if text.startswith("sha256:") else text
