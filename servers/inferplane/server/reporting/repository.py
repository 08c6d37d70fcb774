"""Reporting's SQL."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.reporting.feedback import Labels, Target
from inferplane.server.reporting.metrics import VersionMetrics
from inferplane.server.reporting.predictions import Prediction, TimeSpan
from inferplane.server.reporting.quality import VersionQuality
from inferplane.server.reporting.tables import feedback, prediction
from inferplane.server.storage.unit_of_work import UnitOfWork

__all__ = ["FeedbackRepository", "GivenLabels", "PredictionRepository", "ReportReader"]

_when = sa.DateTime(timezone=True)
_texts = postgresql.ARRAY(sa.Text)
_uuids = postgresql.ARRAY(sa.Uuid)
_QUERY_CANCELED = "57014"
_succeeded = prediction.c.status_code == 0
_stored = [column for column in prediction.c if column.computed is None]


def _array_literal(labels: Sequence[str]) -> str:
    """Labels in PostgreSQL's text form of an array: `unnest` flattens an array of arrays, but not one of these."""
    if not labels:
        return "{}"
    quoted = (label.replace("\\", "\\\\").replace('"', '\\"') for label in labels)
    return "{" + ",".join(f'"{label}"' for label in quoted) + "}"


async def _array_literals(lists: Iterable[Sequence[str]]) -> list[str]:
    # Off the loop: a full request takes 25 ms or more.
    return await asyncio.to_thread(lambda: [_array_literal(labels) for labels in lists])


def _rows(name: str, **columns: tuple[sa.types.TypeEngine[Any], Sequence[Any]]) -> Any:
    """A table of these columns, sent as one array each."""
    arrays = [sa.literal(values, postgresql.ARRAY(kind)) for kind, values in columns.values()]
    shape = [sa.column(column, kind) for column, (kind, _) in columns.items()]
    return sa.func.unnest(*arrays).table_valued(*shape, name=name).render_derived()


def _add() -> sa.Insert:
    """Stores rows that are given as an array for each column, but for those whose ids are there."""
    shape = [sa.column(column.name, column.type) for column in _stored[:-1]]
    shape.append(sa.column("predicted_labels", sa.Text()))
    arrays = [sa.bindparam(f"given_{column.name}", type_=postgresql.ARRAY(column.type)) for column in shape]
    given = sa.func.unnest(*arrays).table_valued(*shape, name="given").render_derived()
    values = [*list(given.c)[:-1], sa.cast(given.c.predicted_labels, _texts)]
    # In one order for all: batches that share records, met in opposite orders, would wait for each other.
    rows = sa.select(*values).order_by(given.c.id)
    return postgresql.insert(prediction).from_select(_stored, rows).on_conflict_do_nothing()


_ADD = _add()
"""Made once: to make it takes as long as to send fifty records."""


class PredictionRepository:
    """Writes prediction records."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, predictions: Sequence[Prediction]) -> int:
        """Add the records whose ids are new; how many those were.

        One statement with an array for each column: 2,000 records take 20 to 30 ms and 8 ms of it here, where a
        VALUES list takes 460 and 330; COPY is no faster once it needs a table of its own to leave out what is there.
        """
        columns: list[Sequence[Any]] = list(zip(*predictions, strict=True)) or [()] * len(_stored)
        columns[-1] = await _array_literals(columns[-1])
        arrays = {f"given_{column.name}": values for column, values in zip(_stored, columns, strict=True)}
        return (await self._connection.execute(_ADD, arrays)).rowcount


@dataclass(frozen=True, slots=True)
class GivenLabels:
    """Labels of predictions as SQL: a table of the predictions' `id`s, and beside each the array of its labels."""

    table: Any
    labels: sa.ColumnElement[Any]


class FeedbackRepository:
    """Reads predictions and writes their labels, in a unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._connection = unit.connection
        self.record = unit.record

    async def targets_by_id(self, deployment: str, ids: Sequence[UUID]) -> Mapping[UUID, Target]:
        """The deployment's predictions of these ids."""
        query = sa.select(prediction.c.id, _succeeded.label("succeeded"), prediction.c.row_count).where(
            prediction.c.id == sa.any_(sa.literal(ids, _uuids)), prediction.c.deployment == deployment
        )
        rows = await self._connection.execute(query)
        return {row.id: Target(row.id, row.succeeded, row.row_count) for row in rows}

    async def targets_by_client_id(self, deployment: str, ids: Sequence[str]) -> Mapping[str, Sequence[Target]]:
        """For each client request id up to two of the deployment's predictions, those that succeeded first."""
        wanted = _rows("wanted", client_id=(sa.Text(), ids))
        # Two are enough to see that an id is ambiguous; a client may have used one for a million calls.
        found = (
            sa.select(prediction.c.id, _succeeded.label("succeeded"), prediction.c.row_count)
            .where(
                prediction.c.deployment == deployment,
                prediction.c.client_request_id == wanted.c.client_id,
                prediction.c.client_request_id != "",
            )
            .order_by(prediction.c.status_code)
            .limit(2)
            .lateral("found")
        )
        query = sa.select(wanted.c.client_id, found).select_from(wanted.join(found, sa.true()))
        targets: dict[str, list[Target]] = {}
        for row in await self._connection.execute(query):
            targets.setdefault(row.client_id, []).append(Target(row.id, row.succeeded, row.row_count))
        return targets

    async def given(self, labels: Mapping[UUID, Labels]) -> GivenLabels:
        """The labels, ready for statements."""
        literals = await _array_literals(labels.values())
        table = _rows("given", id=(sa.Uuid(), list(labels)), labels=(sa.Text(), literals))
        return GivenLabels(table, sa.cast(table.c.labels, _texts))

    async def add_labels(self, offered: GivenLabels, submitter: str, at: datetime) -> int:
        """Store the labels of predictions that have none; how many those were."""
        given, given_labels = offered.table, offered.labels
        pair = sa.func.unnest(given_labels, prediction.c.predicted_labels).table_valued("label", "predicted")
        correct = sa.select(sa.func.count()).select_from(pair.render_derived("pair"))
        correct = correct.where(sa.column("label", sa.Text) == sa.column("predicted", sa.Text))
        # Ordered for the same reason as records.
        rows = (
            sa.select(
                given.c.id,
                given_labels,
                correct.correlate(given, prediction).scalar_subquery(),
                sa.literal(at, _when),
                sa.literal(submitter, sa.Text),
            )
            .join_from(given, prediction, prediction.c.id == given.c.id)
            .order_by(given.c.id)
        )
        statement = postgresql.insert(feedback).from_select(list(feedback.c), rows).on_conflict_do_nothing()
        return (await self._connection.execute(statement)).rowcount

    async def conflicts(self, offered: GivenLabels) -> set[UUID]:
        """The predictions whose stored labels are not these."""
        given, given_labels = offered.table, offered.labels
        query = sa.select(feedback.c.prediction_id).join_from(
            feedback, given, sa.and_(feedback.c.prediction_id == given.c.id, feedback.c.labels != given_labels)
        )
        return set(await self._connection.scalars(query))


@asynccontextmanager
async def bounded_reader(connection: AsyncConnection, seconds: float) -> AsyncIterator["ReportReader"]:
    """A reader none of whose queries takes longer; raises DEADLINE_EXCEEDED where one would. To say that the database
    does not answer would have the same work asked for again."""
    await connection.execute(sa.select(sa.func.set_config("statement_timeout", f"{seconds * 1000:.0f}", True)))
    try:
        yield ReportReader(connection)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _QUERY_CANCELED:
            raise
        raise InferplaneError(
            ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
            detail=f"the report takes more than {seconds:.0f} s: ask for a shorter time_range",
        ) from error


class ReportReader:
    """Sums up predictions, on any connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def metrics(self, model: str, span: TimeSpan, quantiles: Sequence[float]) -> list[VersionMetrics]:
        """Calls, errors and latency by version, newest first; nothing of versions without calls."""
        wanted = sa.literal(quantiles, postgresql.ARRAY(sa.Double))
        latencies = sa.func.percentile_disc(wanted).within_group(prediction.c.latency_us).filter(_succeeded)
        query = self._by_version(
            model,
            span,
            sa.func.count().label("calls"),
            sa.func.count().filter(~_succeeded).label("errors"),
            latencies.label("latencies"),
        )
        return [
            VersionMetrics(model, row.version, row.digest, row.calls, row.errors, tuple(row.latencies or ()))
            for row in await self._connection.execute(query)
        ]

    async def quality(self, model: str, span: TimeSpan) -> list[VersionQuality]:
        """Rows, labels and right predictions by version, newest first; nothing of versions without successful calls."""
        labelled = feedback.c.prediction_id.is_not(None)
        query = (
            self._by_version(
                model,
                span,
                sa.func.sum(prediction.c.row_count).label("rows"),
                sa.func.coalesce(sa.func.sum(prediction.c.row_count).filter(labelled), 0).label("labelled"),
                sa.func.coalesce(sa.func.sum(feedback.c.correct_count), 0).label("correct"),
            )
            .select_from(prediction.outerjoin(feedback))
            .where(_succeeded)
        )
        return [
            VersionQuality(model, row.version, row.digest, row.rows, row.labelled, row.correct)
            for row in await self._connection.execute(query)
        ]

    @staticmethod
    def _by_version(model: str, span: TimeSpan, *sums: sa.ColumnElement[Any]) -> sa.Select[Any]:
        # By digest as well: should one version ever have answered from two sets of bytes, that must be seen.
        group = (prediction.c.version, prediction.c.digest)
        query = sa.select(*group, *sums).where(prediction.c.model == model)
        if span.start is not None:
            query = query.where(prediction.c.requested_at >= span.start)
        if span.end is not None:
            query = query.where(prediction.c.requested_at < span.end)
        return query.group_by(*group).order_by(prediction.c.version.desc(), prediction.c.digest)
