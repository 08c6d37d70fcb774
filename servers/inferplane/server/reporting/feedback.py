"""Feedback: the right answers of predictions, given once and then fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.ids import now
from inferplane.server.names import DEPLOYMENT

if TYPE_CHECKING:
    from inferplane.server.reporting.repository import FeedbackRepository, GivenLabels

__all__ = ["MAX_ANSWERS", "MAX_ANSWER_LABELS", "Answer", "Feedback", "Labels", "Target"]

MAX_ANSWERS = 1000
"""Most answers of one request."""

MAX_ANSWER_LABELS = 200_000
"""Most labels of one request: to check them and write them out takes 70 ms of a thread."""

ARRIVAL = 1.0
"""Seconds after which a record that was not there is worth asking for again."""

Labels = tuple[str, ...]
"""The right classes of one prediction, one for each row."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One entry of a request. `path` is its place there, such as `feedback[3]`; the prediction is named by its id
    or, where that is None, by the client's own id of the request."""

    path: str
    prediction_id: UUID | None
    client_request_id: str
    labels: Labels

    @property
    def id_path(self) -> str:
        """The path of the field that names the prediction."""
        return f"{self.path}.{'client_request_id' if self.prediction_id is None else 'prediction_id'}"


@dataclass(frozen=True, slots=True)
class Target:
    """A prediction that an answer may be about. `row_count` is the number of rows with a predicted class."""

    id: UUID
    succeeded: bool
    row_count: int


class Feedback:
    """Takes labels."""

    async def submit(
        self, store: "FeedbackRepository", deployment: str, answers: Sequence[Answer], submitter: str
    ) -> int:
        """Store the answers, all or none; how many predictions had no label before.

        Raises PREDICTION_NOT_FOUND, PREDICTION_AMBIGUOUS, FEEDBACK_CONFLICT, and INVALID_FIELD where an answer does not
        fit its prediction or contradicts another one of the request.
        """
        targets = await self._resolve(store, deployment, answers)
        labels: dict[UUID, Labels] = {}
        paths: dict[UUID, str] = {}
        for answer, target in zip(answers, targets, strict=True):
            _check_fit(answer, target)
            if labels.setdefault(target.id, answer.labels) != answer.labels:
                raise invalid_field(f"{answer.path}.labels", f"contradicts {paths[target.id]}, of the same prediction")
            paths.setdefault(target.id, answer.path)
        given = await store.given(labels)
        stored = await store.add_labels(given, submitter, now())
        if stored < len(labels):
            await self._check_conflicts(store, given, paths)
        store.record("feedback.submit", DEPLOYMENT.format(deployment), predictions=len(labels), stored=stored)
        return stored

    async def _resolve(self, store: "FeedbackRepository", deployment: str, answers: Sequence[Answer]) -> list[Target]:
        by_id = await store.targets_by_id(deployment, [a.prediction_id for a in answers if a.prediction_id is not None])
        client_ids = {answer.client_request_id for answer in answers if answer.prediction_id is None}
        by_client_id = await store.targets_by_client_id(deployment, sorted(client_ids)) if client_ids else {}
        return [
            _only_target(answer, by_client_id.get(answer.client_request_id, ()))
            if answer.prediction_id is None
            else by_id.get(answer.prediction_id) or _missing(answer)
            for answer in answers
        ]

    async def _check_conflicts(
        self, store: "FeedbackRepository", given: "GivenLabels", paths: Mapping[UUID, str]
    ) -> None:
        conflicts = await store.conflicts(given)
        if conflicts:
            first = next(prediction for prediction in paths if prediction in conflicts)
            raise InferplaneError(
                ErrorReason.ERROR_REASON_FEEDBACK_CONFLICT, detail=paths[first], prediction_id=str(first)
            )


def _only_target(answer: Answer, found: Sequence[Target]) -> Target:
    # A call that failed predicted nothing, so its retry under the same id is not ambiguous.
    succeeded = [target for target in found if target.succeeded]
    if len(succeeded) > 1:
        raise _about(ErrorReason.ERROR_REASON_PREDICTION_AMBIGUOUS, answer)
    return (succeeded or list(found) or [_missing(answer)])[0]


def _check_fit(answer: Answer, target: Target) -> None:
    if not target.succeeded:
        raise invalid_field(answer.id_path, "is of a call that failed, so there is no answer to judge")
    if target.row_count == 0:
        raise invalid_field(
            f"{answer.path}.labels", "cannot be compared: the version that answered names no label output"
        )
    if len(answer.labels) != target.row_count:
        raise invalid_field(f"{answer.path}.labels", f"must be {target.row_count}, one for each predicted row")


def _missing(answer: Answer) -> Target:
    raise _about(ErrorReason.ERROR_REASON_PREDICTION_NOT_FOUND, answer, retry_after=ARRIVAL)


def _about(reason: ErrorReason.ValueType, answer: Answer, retry_after: float | None = None) -> InferplaneError:
    if answer.prediction_id is None:
        return InferplaneError(
            reason, retry_after=retry_after, detail=answer.path, client_request_id=answer.client_request_id
        )
    return InferplaneError(reason, retry_after=retry_after, detail=answer.path, prediction_id=str(answer.prediction_id))
