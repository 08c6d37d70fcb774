"""A progress bar on standard error, for people who watch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from inferplane.cli.invocation import Invocation
from inferplane.client.transfer import Progress as Report


@contextmanager
def transfer(invocation: Invocation, label: str) -> Iterator[Report | None]:
    """Show a bar while bytes move; None where nobody watches."""
    if invocation.as_json or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda moved, total: bar.update(task, completed=moved, total=total)
