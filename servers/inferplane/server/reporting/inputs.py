"""Reporting's validated requests, as domain objects."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, TypeVar
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AfterValidator, BeforeValidator

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.reporting.v1 import prediction_pb2, report_pb2
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.ids import now
from inferplane.server.limits import MAX_LABEL_LENGTH, MAX_LABELS
from inferplane.server.names import (
    USER,
    WORKLOAD,
    DeploymentRef,
    ModelRef,
    client_request_id,
    deployment_id,
    digest,
    version_name,
)
from inferplane.server.reporting.feedback import MAX_ANSWER_LABELS, MAX_ANSWERS, Answer
from inferplane.server.reporting.predictions import MAX_RECORDS, Prediction, TimeSpan
from inferplane.server.rpc.validation import Input, parse
from inferplane.server.settings import ServiceName

__all__ = ["answers_of", "deployment_of", "model_of", "predictions_of", "span_of"]

MAX_LATENCY_US = 86_400_000_000
HIGHEST_STATUS_CODE = 16
NAMES = 1024
"""Names that were seen to be valid and are remembered, of each kind; the longest has 160 letters."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
WORKLOADS = frozenset(WORKLOAD.format(service) for service in ServiceName)


def _uuid_text(text: str) -> str:
    # UUID itself takes braces, `urn:uuid:` and no hyphens at all.
    if _UUID.fullmatch(text) is None:
        raise ValueError("must be a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057")
    return text


def _uuid(text: str) -> UUID:
    return UUID(_uuid_text(text))


@lru_cache(NAMES)
def _caller(name: str) -> str:
    if name not in WORKLOADS:
        USER.parse(name)
    return name


def _instant(message: Timestamp) -> datetime:
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time from 0001-01-01 to 9999-12-31") from None


def _request_time(message: Timestamp) -> datetime:
    # The default of an unset Timestamp is the epoch, and nothing was predicted before that.
    if message.seconds <= 0:
        raise ValueError("must be set, to a time after 1970-01-01")
    if not 0 <= message.nanos < 1_000_000_000:
        raise ValueError("must have nanos from 0 to 999999999")
    try:
        return datetime.fromtimestamp(message.seconds, UTC).replace(microsecond=message.nanos // 1000)
    except (ValueError, OverflowError, OSError):
        raise ValueError("must be a time up to 9999-12-31") from None


def _microseconds(message: Duration) -> int:
    value = message.seconds * 1_000_000 + message.nanos // 1000
    if message.seconds < 0 or not 0 <= message.nanos < 1_000_000_000 or value >= MAX_LATENCY_US:
        raise ValueError("must be at least 0 and less than a day")
    return value


def _status_code(value: int) -> int:
    if not 0 <= value <= HIGHEST_STATUS_CODE:
        raise ValueError(f"must be a gRPC status code, 0 to {HIGHEST_STATUS_CODE}")
    return value


def _labels(values: Iterable[str]) -> tuple[str, ...]:
    labels = tuple(values)
    if len(labels) > MAX_LABELS:
        raise ValueError(f"must be at most {MAX_LABELS}")
    if any(len(label) > MAX_LABEL_LENGTH or "\0" in label for label in labels):
        raise ValueError(f"must each be at most {MAX_LABEL_LENGTH} characters, without NUL")
    return labels


def _some_labels(values: Iterable[str]) -> tuple[str, ...]:
    labels = _labels(values)
    if not labels:
        raise ValueError("must hold a label for each predicted row")
    return labels


def _some_client_request_id(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return client_request_id(text)


PredictionId = Annotated[UUID, BeforeValidator(_uuid)]


class AnswerLabels(Input):
    labels: Annotated[tuple[str, ...], BeforeValidator(_some_labels)]


class AnswerById(AnswerLabels):
    prediction_id: PredictionId


class AnswerByClientId(AnswerLabels):
    client_request_id: Annotated[str, AfterValidator(_some_client_request_id)]


class OfDeployment(Input):
    deployment: DeploymentRef


class OfModel(Input):
    model: ModelRef


_RECORD_CHECKS: Sequence[tuple[str, Callable[[Any], Any]]] = (
    ("prediction_id", _uuid_text),
    ("client_request_id", client_request_id),
    ("caller", _caller),
    ("deployment", lru_cache(NAMES)(deployment_id)),
    ("model_version", lru_cache(NAMES)(version_name)),
    ("digest", lru_cache(NAMES)(digest)),
    ("request_time", _request_time),
    ("latency", _microseconds),
    ("status_code", _status_code),
    ("predicted_labels", _labels),
)
"""What each field of a record must be, in the order of Prediction's. By hand: there are as many records as
predictions, and pydantic takes three times as long."""

InputT = TypeVar("InputT", bound=Input)


def _parse_item(model: type[InputT], message: Message, field: str, position: int) -> InputT:
    try:
        return parse(model, message)
    except InferplaneError as error:
        violations = tuple((f"{field}[{position}].{path}", problem) for path, problem in error.violations)
        raise InferplaneError(error.reason, violations=violations) from None


def deployment_of(request: Message) -> str:
    """The deployment that `request.deployment` names; raises INVALID_FIELD."""
    return parse(OfDeployment, request).deployment


def model_of(request: Message) -> str:
    """The model that `request.model` names; raises INVALID_FIELD."""
    return parse(OfModel, request).model


def predictions_of(records: Sequence[prediction_pb2.PredictionRecord]) -> list[Prediction]:
    """A batch of records; raises INVALID_FIELD with paths such as `records[3].latency`."""
    if len(records) > MAX_RECORDS:
        raise invalid_field("records", f"must be at most {MAX_RECORDS}")
    return [_prediction(record, position) for position, record in enumerate(records)]


def _prediction(record: prediction_pb2.PredictionRecord, position: int) -> Prediction:
    try:
        values = [check(getattr(record, field)) for field, check in _RECORD_CHECKS]
    except ValueError:
        raise _violations(record, position) from None
    uuid, client_request_id, caller, deployment, (model, version), *others = values
    return Prediction(uuid, client_request_id, caller, deployment, model, version, *others)


def _violations(record: prediction_pb2.PredictionRecord, position: int) -> InferplaneError:
    """INVALID_FIELD that names all fields which are not sound."""
    violations = []
    for field, check in _RECORD_CHECKS:
        try:
            check(getattr(record, field))
        except ValueError as error:
            violations.append((f"records[{position}].{field}", str(error)))
    return InferplaneError(ErrorReason.ERROR_REASON_INVALID_FIELD, violations=tuple(violations))


def answers_of(entries: Sequence[prediction_pb2.Feedback]) -> list[Answer]:
    """The answers of a request; raises INVALID_FIELD with paths such as `feedback[3].labels`."""
    if not 0 < len(entries) <= MAX_ANSWERS:
        raise invalid_field("feedback", f"must be 1 to {MAX_ANSWERS}")
    if sum(len(entry.labels) for entry in entries) > MAX_ANSWER_LABELS:
        raise invalid_field("feedback", f"must hold at most {MAX_ANSWER_LABELS} labels")
    return [_answer(entry, position) for position, entry in enumerate(entries)]


def _answer(entry: prediction_pb2.Feedback, position: int) -> Answer:
    path = f"feedback[{position}]"
    match entry.WhichOneof("prediction"):
        case "prediction_id":
            by_id = _parse_item(AnswerById, entry, "feedback", position)
            return Answer(path, by_id.prediction_id, "", by_id.labels)
        case "client_request_id":
            by_client_id = _parse_item(AnswerByClientId, entry, "feedback", position)
            return Answer(path, None, by_client_id.client_request_id, by_client_id.labels)
        case _:
            raise invalid_field(path, "must name a prediction: set prediction_id or client_request_id")


def span_of(message: report_pb2.TimeRange) -> TimeSpan:
    """The span of time, up to now where no end is set; raises INVALID_FIELD."""
    start = _bound(message, "start_time")
    end = _bound(message, "end_time")
    if start is not None and end is not None and end < start:
        raise invalid_field("time_range.end_time", "must not be before start_time")
    return TimeSpan(start, end or now())


def _bound(message: report_pb2.TimeRange, field: Any) -> datetime | None:
    if not message.HasField(field):
        return None
    try:
        return _instant(getattr(message, field))
    except ValueError as error:
        raise invalid_field(f"time_range.{field}", str(error)) from None
