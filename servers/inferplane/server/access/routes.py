"""Reads the routes to deployments. Signatures are the large part of them, and a version's never changes: each is read
and parsed once, however often the deployments around it change."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

import asyncpg

from inferplane.server.access.snapshot import Route, Target, by_name
from inferplane.server.tensors import Signature, signature_from_bytes

__all__ = ["read_routes"]

BATCH = 16
"""Signatures read at once: those that releases before 64 KiB was the limit have stored may take 3 MiB each."""

_TARGET = "deployment, model, version, digest, label_output"
_SIGNATURES = """
    SELECT DISTINCT ON (model, version, digest) model, version, digest, signature
    FROM (
        SELECT model, version, digest, signature FROM policy.routes
        UNION ALL SELECT model, version, digest, signature FROM policy.other_targets
    ) AS target
    WHERE (model, version, digest) IN (
        SELECT m, v, d FROM unnest($1::text[], $2::integer[], $3::text[]) AS wanted (m, v, d)
    )
"""

Key = tuple[str, int, str]
"""Model, version and digest."""


async def read_routes(connection: asyncpg.Connection, known: Mapping[str, Route]) -> Mapping[str, Route]:
    """All routes by deployment, with the signatures of the `known` ones where versions are the same.

    `connection` is in a transaction that sees one state of the tables.
    """
    rows = await connection.fetch(f"SELECT {_TARGET}, ready FROM policy.routes")  # noqa: S608 - a constant
    others = await connection.fetch(f"SELECT {_TARGET} FROM policy.other_targets")  # noqa: S608 - a constant
    signatures = {
        (target.model, target.version, target.digest): target.signature
        for route in known.values()
        for target in (route.target, *route.others)
    }
    missing = {key for row in chain(rows, others) if (key := _key(row)) not in signatures}
    signatures.update(await _read(connection, missing))
    return by_name(_routes(rows, others, signatures))


async def _read(connection: asyncpg.Connection, missing: Collection[Key]) -> dict[Key, Signature]:
    wanted = sorted(missing)
    found: dict[Key, Signature] = {}
    for start in range(0, len(wanted), BATCH):
        models, versions, digests = zip(*wanted[start : start + BATCH], strict=True)
        rows = await connection.fetch(_SIGNATURES, models, versions, digests)
        # Off the loop: a signature of the largest size takes milliseconds, and there may be hundreds at the start.
        found.update(await asyncio.to_thread(_parsed, rows))
    return found


def _parsed(rows: Iterable[asyncpg.Record]) -> dict[Key, Signature]:
    return {_key(row): signature_from_bytes(row["signature"]) for row in rows}


def _key(row: asyncpg.Record) -> Key:
    return row["model"], row["version"], row["digest"]


def _target(row: asyncpg.Record, signatures: Mapping[Key, Signature]) -> Target:
    key = _key(row)
    return Target(*key, signatures[key], row["label_output"])


def _routes(
    rows: Iterable[asyncpg.Record], others: Iterable[asyncpg.Record], signatures: Mapping[Key, Signature]
) -> Iterator[Route]:
    beside: dict[str, list[Target]] = {}
    for row in others:
        beside.setdefault(row["deployment"], []).append(_target(row, signatures))
    for row in rows:
        name = row["deployment"]
        yield Route(name, _target(row, signatures), row["ready"], tuple(beside.get(name, ())))
