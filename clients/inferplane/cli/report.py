"""`report create`."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from inferplane.cli import records
from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.client import names
from inferplane.client.names import invalid
from inferplane.reporting.v1.report_pb2 import VersionMetrics, VersionQuality

app = typer.Typer(add_completion=False, name="report", help="Report usage, latency and accuracy.", no_args_is_help=True)

_QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
_COLUMNS = {
    "version": "Version",
    "digest": "Digest",
    "calls": "Calls",
    "errors": "Errors",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "rows": "Rows",
    "labelled": "Labelled",
    "accuracy": "Accuracy",
}


@app.callback()
def _group() -> None:
    """Report usage, latency and accuracy."""


@command(app, "create")
def create(
    invocation: Invocation,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Which model.")],
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From this time on: ISO 8601, UTC unless it says so.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.json", help="Write the report to a file as JSON.")
    ] = None,
) -> None:
    """Report calls, errors, latency and accuracy of each version of a model, newest first."""
    names.model_id(model)
    start, end = _time("--since", since), _time("--until", until)
    with invocation.plane() as plane:
        metrics = plane.reporting.metrics(model, start, end, list(_QUANTILES.values()))
        quality = plane.reporting.quality(model, start, end)
    versions = _versions(metrics, quality)
    report = {
        "model": model,
        "since": start.isoformat() if start else None,
        "until": end.isoformat() if end else None,
        "versions": versions,
    }
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n")
        invocation.note(f"Wrote {output}")
    if invocation.as_json:
        invocation.document(report)
    else:
        invocation.table(versions, _COLUMNS)


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise invalid(option, f"{text!r} is no ISO 8601 time, such as 2026-01-31T12:00:00Z") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _versions(metrics: Iterable[VersionMetrics], quality: Iterable[VersionQuality]) -> list[dict[str, Any]]:
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for usage in metrics:
        merged[usage.model_version, usage.digest] = _usage(usage)
    for judged in quality:
        row = merged.setdefault(
            (judged.model_version, judged.digest), _usage(VersionMetrics(model_version=judged.model_version))
        )
        row |= {"digest": judged.digest, "rows": judged.row_count, "labelled": judged.labelled_count}
        row |= {"correct": judged.correct_count, "accuracy": judged.accuracy if judged.labelled_count else None}
    return sorted(merged.values(), key=lambda row: row["version"] or 0, reverse=True)


def _usage(usage: VersionMetrics) -> dict[str, Any]:
    measured = {item.quantile: item.latency.ToTimedelta().total_seconds() * 1000 for item in usage.latency_quantiles}
    return {
        "version": records.version_number(usage.model_version),
        "digest": usage.digest,
        "calls": usage.call_count,
        "errors": usage.error_count,
        **{name: measured.get(quantile) for name, quantile in _QUANTILES.items()},
        "rows": 0,
        "labelled": 0,
        "correct": 0,
        "accuracy": None,
    }
