"""Policy as a test wants it."""

from collections.abc import Iterable

from inferplane.server.access.snapshot import GrantRow, Grants, Part, PolicySnapshot, Route, by_name

__all__ = ["compile_snapshot"]


def compile_snapshot(
    revision: int, grants: Iterable[GrantRow], routes: Iterable[Route], revoked: Iterable[str] = ()
) -> PolicySnapshot:
    """A snapshot of these rows, all of them of one `revision`."""
    return PolicySnapshot(Grants(grants), by_name(routes), frozenset(revoked), dict.fromkeys(Part, revision))
