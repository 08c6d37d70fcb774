"""The immutable policy snapshot and the decisions it makes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from inferplane.common.v1.access_pb2 import Permission
from inferplane.server.access.roles import ROLE_PERMISSIONS
from inferplane.server.tensors import Signature

__all__ = ["EMPTY", "GrantRow", "PolicySnapshot", "Route", "Target", "compile_snapshot"]

INSTALLATION = "*"
"""The scope that covers everything, asked for where a permission is about the installation itself."""


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


@lru_cache(maxsize=4096)
def _glob(scope: str) -> re.Pattern[str]:
    translated = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in scope)
    return re.compile(translated, re.DOTALL)


def covers(scope: str, name: str) -> bool:
    """Whether the glob `scope` covers `name`; only `*` itself covers the installation."""
    if scope == INSTALLATION:
        return True
    return name != INSTALLATION and _glob(scope).fullmatch(name) is not None


class PolicySnapshot:
    """Grants and routes at one revision. Decisions are remembered, so a hot one costs a dictionary lookup."""

    MAX_REMEMBERED = 100_000

    def __init__(self, revision: int, grants: Mapping[str, tuple[GrantRow, ...]], routes: Mapping[str, Route]) -> None:
        self.revision = revision
        self.routes = routes
        self._grants = grants
        self._decisions: dict[tuple[str, Permission.ValueType, str], bool] = {}
        self._somewhere: dict[tuple[str, Permission.ValueType], bool] = {}

    def grants_of(self, subject: str) -> tuple[GrantRow, ...]:
        """All grants of `subject`."""
        return self._grants.get(subject, ())

    def allows(self, subject: str, permission: Permission.ValueType, name: str) -> bool:
        """Whether a grant of `subject` gives `permission` on `name` (`*` for the installation)."""
        key = (subject, permission, name)
        decision = self._decisions.get(key)
        if decision is None:
            decision = any(covers(grant.scope, name) for grant in self._giving(subject, permission))
            if len(self._decisions) >= self.MAX_REMEMBERED:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def allows_somewhere(self, subject: str, permission: Permission.ValueType) -> bool:
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
        return (g for g in self.grants_of(subject) if permission in ROLE_PERMISSIONS.get(g.role, frozenset()))


def compile_snapshot(revision: int, grants: Iterable[GrantRow], routes: Iterable[Route]) -> PolicySnapshot:
    """Index the rows of the policy views."""
    by_subject: dict[str, list[GrantRow]] = {}
    for grant in grants:
        by_subject.setdefault(grant.subject, []).append(grant)
    return PolicySnapshot(
        revision,
        {subject: tuple(rows) for subject, rows in by_subject.items()},
        {route.deployment: route for route in routes},
    )


EMPTY = compile_snapshot(0, (), ())
