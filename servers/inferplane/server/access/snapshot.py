"""The immutable policy snapshot, in parts, and the decisions it makes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inferplane.common.v1.access_pb2 import Permission
from inferplane.server.access.globs import Glob
from inferplane.server.access.roles import ROLE_PERMISSIONS
from inferplane.server.tensors import Signature

__all__ = ["EMPTY", "GrantRow", "Grants", "Part", "PolicySnapshot", "Route", "Target"]

INSTALLATION = "*"
"""The scope that covers everything, asked for where a permission is about the installation itself."""


class Part(StrEnum):
    """What policy is made of. Each part has a revision of its own, and each service fetches those that it uses."""

    GRANTS = "grants"
    DEPLOYMENTS = "deployments"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class GrantRow:
    """One row of the view `policy.grants`."""

    subject: str
    role: str
    scope: str


@dataclass(frozen=True, slots=True)
class Target:
    """A version that a deployment answers with. `signature` is what callers must send; `label_output` is the output
    from which predicted classes are recorded, or empty."""

    model: str
    version: int
    digest: str
    signature: Signature
    label_output: str


@dataclass(frozen=True, slots=True)
class Route:
    """What a deployment's name leads to.

    Requests are checked against `target`. Around a replacement, answers of `others`, versions of the same model, may
    arrive too: of the one that is to come, and of those that were there or were to come before.
    """

    deployment: str
    target: Target
    ready: bool
    others: tuple[Target, ...] = ()

    def answered_by(self, version: int) -> Target | None:
        """The target of that version; None if this deployment has none."""
        return next((target for target in (self.target, *self.others) if target.version == version), None)


class Grants:
    """Who may do what. Decisions are remembered, so a hot one costs a dictionary lookup."""

    MAX_REMEMBERED = 20_000
    """Together with the names' length it bounds what callers can make a process remember, to about 10 MB."""
    LONGEST_NAME = 128

    def __init__(self, rows: Iterable[GrantRow]) -> None:
        self._by_subject: dict[str, list[GrantRow]] = {}
        for row in rows:
            self._by_subject.setdefault(row.subject, []).append(row)
        self._globs: dict[str, Glob] = {}
        self._somewhere: dict[tuple[str, Permission.ValueType], bool] = {}
        self.decisions: dict[tuple[str, Permission.ValueType, str], bool] = {}

    def of(self, subject: str) -> tuple[GrantRow, ...]:
        """All grants of `subject`."""
        return tuple(self._by_subject.get(subject, ()))

    def allow(self, subject: str, permission: Permission.ValueType, name: str) -> bool:
        """Whether a grant of `subject` gives `permission` on `name` (`*` for the installation)."""
        key = (subject, permission, name)
        decision = self.decisions.get(key)
        if decision is None:
            decision = any(self._covers(grant.scope, name) for grant in self._giving(subject, permission))
            if len(name) <= self.LONGEST_NAME:
                if len(self.decisions) >= self.MAX_REMEMBERED:
                    self.decisions.clear()
                self.decisions[key] = decision
        return decision

    def allow_somewhere(self, subject: str, permission: Permission.ValueType) -> bool:
        """Whether any grant of `subject` gives `permission`, on whatever names."""
        key = (subject, permission)
        found = self._somewhere.get(key)
        if found is None:
            found = any(True for _ in self._giving(subject, permission))
            if len(self._somewhere) >= self.MAX_REMEMBERED:
                self._somewhere.clear()
            self._somewhere[key] = found
        return found

    def _giving(self, subject: str, permission: Permission.ValueType) -> Iterable[GrantRow]:
        rows = self._by_subject.get(subject, ())
        return (row for row in rows if permission in ROLE_PERMISSIONS.get(row.role, frozenset()))

    def _covers(self, scope: str, name: str) -> bool:
        """Whether the glob `scope` covers `name`; only `*` itself covers the installation."""
        if scope == INSTALLATION:
            return True
        glob = self._globs.get(scope)
        if glob is None:
            glob = self._globs[scope] = Glob(scope)
        return name != INSTALLATION and glob.covers(name)


@dataclass(frozen=True, slots=True)
class PolicySnapshot:
    """Policy as it stood: grants, the routes to deployments, and the sessions that ended before their tokens did.

    `revisions` tells of which state of the tables each part is. A new snapshot shares the parts that did not change.
    """

    grants: Grants
    routes: Mapping[str, Route]
    revoked: frozenset[str]
    revisions: Mapping[Part, int] = field(default_factory=dict)

    def grants_of(self, subject: str) -> tuple[GrantRow, ...]:
        """All grants of `subject`."""
        return self.grants.of(subject)

    def allows(self, subject: str, permission: Permission.ValueType, name: str) -> bool:
        """Whether a grant of `subject` gives `permission` on `name` (`*` for the installation)."""
        return self.grants.allow(subject, permission, name)

    def allows_somewhere(self, subject: str, permission: Permission.ValueType) -> bool:
        """Whether any grant of `subject` gives `permission`, on whatever names."""
        return self.grants.allow_somewhere(subject, permission)


def by_name(routes: Iterable[Route]) -> Mapping[str, Route]:
    """Routes by the name of their deployment."""
    return {route.deployment: route for route in routes}


EMPTY = PolicySnapshot(Grants(()), {}, frozenset())
