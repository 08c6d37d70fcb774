"""The audit table: insert-only for every service. What is stored of an event are its canonical bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import sqlalchemy as sa

from inferplane.reporting.v1.audit_event_pb2 import AuditEvent
from inferplane.server.ids import now, uuid7
from inferplane.server.timestamps import timestamp

__all__ = ["Actor", "Changed", "Detail", "audit_event", "event_row"]

metadata = sa.MetaData(schema="reporting")
_name = sa.Text(collation="C")

audit_event = sa.Table(
    "audit_event",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    # Beside the bytes stands what events are looked for by, and nothing else.
    sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("service", _name, nullable=False),
    sa.Column("actor", _name, nullable=False),
    sa.Column("action", _name, nullable=False),
    sa.Column("resource", _name, nullable=False),
    sa.Column("event", sa.LargeBinary, nullable=False),
)

Value: TypeAlias = str | int | bool | None


@dataclass(frozen=True, slots=True)
class Changed:
    """A property before and after; None where there was, or is, none."""

    before: Value
    after: Value


Detail: TypeAlias = str | int | bool | Changed


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does what is recorded, and in which request."""

    subject: str
    request_id: str = ""
    on_behalf_of: str = ""


def event_row(
    service: str, actor: Actor, action: str, resource: str, detail: Mapping[str, Detail]
) -> dict[str, object]:
    """The row of an event that happens now. `detail` holds no secrets; a plain value counts as one that came to be."""
    event_id, at = uuid7(), now()
    event = AuditEvent(
        id=str(event_id),
        time=timestamp(at),
        service=service,
        actor=actor.subject,
        on_behalf_of=actor.on_behalf_of,
        request_id=actor.request_id,
        action=action,
        resource=resource,
        changes=[_change(name, detail[name]) for name in sorted(detail)],
    )
    return {
        "id": event_id,
        "occurred_at": at,
        "service": service,
        "actor": actor.subject,
        "action": action,
        "resource": resource,
        "event": event.SerializeToString(deterministic=True),
    }


def _change(name: str, detail: Detail) -> AuditEvent.Change:
    changed = detail if isinstance(detail, Changed) else Changed(None, detail)
    return AuditEvent.Change(field=name, before=_value(changed.before), after=_value(changed.after))


def _value(value: Value) -> AuditEvent.Value | None:
    match value:
        case None:
            return None
        case bool():
            return AuditEvent.Value(truth=value)
        case int():
            return AuditEvent.Value(number=value)
        case _:
            return AuditEvent.Value(text=value)
