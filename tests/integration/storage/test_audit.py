"""What the audit stores: canonical bytes that say all of an event, readable by whoever knows protobuf."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import URL

from inferplane.reporting.v1.audit_event_pb2 import AuditEvent
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor, Changed, event_row
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from tests.support.database import rows

BOB = Actor("workloads/inference", "request-1", "users/bob")
VALUES = st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
DETAILS = st.dictionaries(
    st.text("abc_", min_size=1, max_size=8),
    VALUES | st.builds(Changed, VALUES | st.none(), VALUES | st.none()),
    max_size=5,
)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message as the wire has them, by nothing but the encoding's specification."""
    at = 0

    def varint() -> int:
        nonlocal at
        start, value = at, 0
        while True:
            byte = data[at]
            value |= (byte & 0x7F) << 7 * (at - start)
            at += 1
            if not byte & 0x80:
                assert byte or at - start == 1, "not the shortest varint"
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        length = varint()
        if kind == 2:
            yield number, data[at : at + length]
            at += length
        else:
            assert kind == 0
            yield number, length


def canonical(data: bytes, message: str = "event") -> None:
    """Fails unless fields come in the order of their numbers, at every level, and none that is left out is there."""
    inner = {("event", 2): "time", ("event", 9): "change", ("change", 2): "value", ("change", 3): "value"}
    found = list(fields(data))
    numbers = [number for number, _ in found]
    assert numbers == sorted(numbers)
    once = [number for number in numbers if (message, number) != ("event", 9)]
    assert len(once) == len(set(once))
    for number, value in found:
        if (message, number) in inner:
            assert isinstance(value, bytes)
            canonical(value, inner[message, number])
        elif message != "value":
            assert value, "a default value is left out"


def stored(detail: dict[str, Any]) -> bytes:
    event = event_row("inference", BOB, "deployment.update", "deployments/m", detail)["event"]
    assert isinstance(event, bytes)
    return event


@hypothesis_settings(deadline=None)
@given(DETAILS)
def test_an_events_bytes_are_canonical(detail: dict[str, Any]) -> None:
    data = stored(detail)
    canonical(data)
    assert AuditEvent.FromString(data).SerializeToString(deterministic=True) == data


@hypothesis_settings(deadline=None)
@given(DETAILS)
def test_an_event_says_what_was_before_and_what_came_after(detail: dict[str, Any]) -> None:
    def read(value: AuditEvent.Value) -> Any:
        kind = value.WhichOneof("kind")
        return getattr(value, kind) if kind else None

    told = {
        change.field: Changed(read(change.before), read(change.after))
        for change in AuditEvent.FromString(stored(detail)).changes
    }
    assert told == {name: one if isinstance(one, Changed) else Changed(None, one) for name, one in detail.items()}


def test_the_order_in_which_details_are_named_does_not_matter() -> None:
    one, other = (AuditEvent.FromString(stored(detail)).changes for detail in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one == other


def test_the_bytes_are_those_that_the_contract_describes() -> None:
    """Written by hand from the specification, as a verifier in another language has it."""
    event = AuditEvent(id="i", service="auth", actor="users/a", action="x.y", resource="r/1")
    event.time.FromMicroseconds(1_000_001)
    event.changes.add(field="f", after=AuditEvent.Value(number=0))
    event.changes.add(field="g", before=AuditEvent.Value(text="b"), after=AuditEvent.Value(truth=True))
    assert (
        event.SerializeToString(deterministic=True)
        == bytes.fromhex(
            "0a0169"  # id
            "1205080110e807"  # time: 1 s and 1000 ns
            "1a0461757468"  # service
            "2207" + b"users/a".hex() + "3a03782e79"  # actor, action
            "4203722f31"  # resource
            "4a070a01661a021000"  # f: none, then 0
            "4a0c0a016712030a01621a021801"  # g: b, then true
        )
    )


async def test_the_columns_repeat_what_the_bytes_say(settings: Settings, database_url: URL) -> None:
    database = Database(settings, ServiceName.AUTH)
    async with UnitOfWorkFactory(database, MasterKey(bytes(32)))(BOB) as unit:
        unit.record("grant.add", "grants/1", role="admin", scope=Changed("a", "b"))
        await unit.commit()
    await database.close()
    (row,) = await rows(database_url, "SELECT * FROM reporting.audit_event")
    event = AuditEvent.FromString(row["event"])
    assert (UUID(event.id), event.time.ToDatetime(row["occurred_at"].tzinfo)) == (row["id"], row["occurred_at"])
    columns = ("service", "actor", "action", "resource")
    assert [getattr(event, name) for name in columns] == [row[name] for name in columns]
    assert (event.on_behalf_of, event.request_id) == ("users/bob", "request-1")
