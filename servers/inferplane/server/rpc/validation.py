"""Validates input at the edge: a message's fields into a frozen pydantic type."""

from typing import Any, TypeVar

from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["Input", "parse"]


class Input(BaseModel):
    """Base of validated inputs. Field names are the request's, so that errors name the request's paths."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


InputT = TypeVar("InputT", bound=Input)


def parse(model: type[InputT], message: Message, at: str = "") -> InputT:
    """Validate the fields of `message` that `model` names; raises INVALID_FIELD with each field's path.

    `at` is the path of `message` itself in the request.
    """
    fields: dict[str, Any] = {name: getattr(message, name) for name in model.model_fields}
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        within = f"{at}." if at else ""
        violations = tuple((within + _path(detail), _problem(detail)) for detail in error.errors(include_url=False))
        raise InferplaneError(ErrorReason.ERROR_REASON_INVALID_FIELD, violations=violations) from None


def _path(detail: ErrorDetails) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    return path.removeprefix(".")


def _problem(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "string_too_long":
            return f"must be at most {context['max_length']} characters"
        case "string_too_short" if context["min_length"] == 1:
            return "must not be empty"
        case "string_too_short":
            return f"must be at least {context['min_length']} characters"
        case "literal_error" | "enum":
            return f"must be one of {context['expected']}"
        case _:
            return "is not valid"
