"""Enforces the rule that the contract states for the method, on every message."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any

from google.protobuf.message import Message

from inferplane.common.v1.access_pb2 import PermissionRule
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import Admission, denied
from inferplane.server.access.snapshot import INSTALLATION
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.identity.principal import Principal
from inferplane.server.names import governed_name
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.pipeline import Interceptor

__all__ = ["authorization"]

MAX_NAMES = 64
"""Names of one message that are looked up: a small message can hold a million."""


def authorization(admission: Admission) -> Interceptor:
    """An interceptor that refuses what no rule and no grant allows."""

    @asynccontextmanager
    async def authorize(call: Call) -> AsyncIterator[None]:
        rule = call.method.access
        match rule.WhichOneof("rule"):
            case "public" | "authenticated":
                pass
            case "workload" if call.principal.workload in rule.workload.services:
                pass
            case "permission":
                _authorize_permission(call, rule.permission, admission)
            case _:
                raise InferplaneError(ErrorReason.ERROR_REASON_PERMISSION_DENIED)
        yield

    return authorize


def _authorize_permission(call: Call, rule: PermissionRule, admission: Admission) -> None:
    if call.principal.workload in rule.workloads:
        return
    target = rule.WhichOneof("target")
    if target == "installation":
        asked = partial(admission.authorize, call.principal, rule.permission, INSTALLATION)
    else:
        asked = partial(admission.authorize_somewhere, call.principal, rule.permission)
    asked()
    call.rests_on(asked)
    match target:
        case "installation" | "filtered":
            pass
        case "fields":
            check = _FieldsCheck(call.principal, rule, admission)
            call.must_pass(check)
            call.rests_on(check.again)
        case _:
            raise denied(rule.permission, INSTALLATION)


class _FieldsCheck:
    """Checks the names in each message of one call.

    Later messages of a stream may leave a name out and then speak of the one named first; the policy is asked
    again each time, so a revoked grant ends a running stream.
    """

    def __init__(self, principal: Principal, rule: PermissionRule, admission: Admission) -> None:
        self._principal = principal
        self._rule = rule
        self._admission = admission
        self._seen: dict[str, list[str]] = {}

    def __call__(self, message: Message) -> None:
        for path in self._rule.fields.paths:
            # One more than may be looked up shows that there are too many.
            values = list(islice(values_at(message, path), MAX_NAMES + 1))
            if len(values) > MAX_NAMES:
                raise invalid_field(path, f"must be at most {MAX_NAMES}")
            if not any(values):
                values = self._seen.get(path, [""])
            for value in values:
                try:
                    name = governed_name(value)
                except ValueError as error:
                    raise invalid_field(path, str(error)) from None
                self._admission.authorize(self._principal, self._rule.permission, name)
            self._seen[path] = values

    def again(self) -> None:
        """Raises PERMISSION_DENIED where what was named so far is not allowed any more."""
        for value in (value for values in self._seen.values() for value in values):
            self._admission.authorize(self._principal, self._rule.permission, governed_name(value))


def values_at(message: Message, path: str) -> Iterator[str]:
    """The values of a field path such as `deployment.targets.model_version`: of every element, where one is a list,
    one after the other."""
    step, _, rest = path.partition(".")
    value: Any = getattr(message, step)
    items: Iterable[Any] = (value,) if isinstance(value, str | Message) else value
    for item in items:
        if rest:
            yield from values_at(item, rest)
        else:
            yield item
