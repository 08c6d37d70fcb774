"""What to do next, from what the tables say and what Triton says. Pure: no clock, no I/O."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from inferplane.server.inference.deployments import Deployment, Served, VersionInfo

__all__ = ["Action", "Confirm", "Load", "Plan", "Retries", "Unload", "key_of", "plan"]

SETTLE = 1.5
"""Seconds between the wish for a replacement and its load: every worker that follows the tables knows of it by then,
and takes an answer of the new version for what it is."""
MAX_LOADS = 4
MAX_LOADING_BYTES = 4 << 30
"""Sizes of the models that are loaded at once, whose processes hold twice as much; one that is larger goes alone."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load a version, of a deployment as it was when this was decided."""

    deployment: Deployment
    version: VersionInfo


@dataclass(frozen=True, slots=True)
class Confirm:
    """Note that Triton serves a version that was to be loaded."""

    deployment: Deployment
    version: VersionInfo


@dataclass(frozen=True, slots=True)
class Unload:
    """Let go of a deleted deployment; in Triton only where no other has its name."""

    deployment: Deployment
    from_triton: bool


Action = Load | Confirm | Unload
Key = tuple[UUID, int, float]
Due = Callable[[Key], bool]


def key_of(deployment: Deployment, version: VersionInfo) -> Key:
    """One wish of a user's: asking for the same again is another."""
    coming = deployment.incoming
    at = coming.requested_at if coming is not None and coming.version == version else deployment.requested_at
    return deployment.id, version.version, at.timestamp()


@dataclass(slots=True)
class Retries:
    """When each wish may be tried again. Times are of one monotonic clock, in seconds.

    `first` seconds after the first failure, twice as many after each further one, at most `longest`.
    """

    first: float = 5.0
    longest: float = 600.0
    _failures: dict[Key, int] = field(default_factory=dict)
    _not_before: dict[Key, float] = field(default_factory=dict)

    def failed(self, key: Key, now: float) -> float:
        """Note a failure; the seconds to wait."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(self.longest, self.first * float(2 ** min(failures - 1, 32)))
        self._not_before[key] = now + delay
        return delay

    def due(self, key: Key, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self._not_before.get(key, now)

    def succeeded(self, key: Key) -> None:
        """Forget its failures."""
        self._failures.pop(key, None)
        self._not_before.pop(key, None)

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget all others."""
        kept = set(keys)
        for memory in (self._failures, self._not_before):
            for key in memory.keys() - kept:
                del memory[key]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, and the names whose running action serves nobody any more."""

    start: tuple[Action, ...]
    cancel: tuple[str, ...]


def plan(
    deployments: Iterable[Deployment],
    served: Mapping[str, Served | None],
    running: Mapping[str, Action],
    retries: tuple[Retries, ...],
    now: float,
) -> Plan:
    """At most one action a name at a time. `served` lacks the names of which Triton could not say.

    `retries` must all agree that something is due.
    """
    rows = list(deployments)
    live = {row.name: row for row in rows if not row.deleted}
    cancel = tuple(name for name, action in running.items() if _is_idle(action, live.get(name)))
    loads = [action.version.size for action in running.values() if isinstance(action, Load)]
    start: dict[str, Action] = {}
    for row in (*(row for row in rows if row.deleted), *live.values()):
        if row.name in running or row.name in start:
            continue
        action = _next(row, row.name in live, served, lambda key: all(retry.due(key, now) for retry in retries))
        if isinstance(action, Load):
            if not _fits(action.version.size, loads):
                continue
            loads.append(action.version.size)
        if action is not None:
            start[row.name] = action
    return Plan(tuple(start.values()), cancel)


def _fits(size: int, loads: list[int]) -> bool:
    return not loads or (len(loads) < MAX_LOADS and sum(loads) + size <= MAX_LOADING_BYTES)


def _is_idle(action: Action, live: Deployment | None) -> bool:
    """Whether a load is of a version that nobody wants there any more."""
    if not isinstance(action, Load):
        return False
    if live is None or live.id != action.deployment.id:
        return True
    return action.version not in [version for version, _ in _wanted(live)]


def _wanted(row: Deployment) -> list[tuple[VersionInfo, bool]]:
    """The versions that may be loaded, each with whether it settled."""
    incoming = row.incoming
    return [(row.version, True), *([(incoming.version, incoming.age >= SETTLE)] if incoming else [])]


def _next(row: Deployment, name_is_live: bool, served: Mapping[str, Served | None], due: Due) -> Action | None:
    if row.deleted:
        return Unload(row, from_triton=not name_is_live) if due(key_of(row, row.version)) else None
    if row.name not in served:
        return None
    now_served = served[row.name]
    incoming = row.incoming.version if row.incoming else None
    if now_served is not None:
        if incoming is not None and now_served.is_of(incoming):
            return Confirm(row, incoming)
        if now_served.is_of(row.version) and row.state != "READY":
            return Confirm(row, row.version)
    return next(_loads(row, now_served, due), None)


def _loads(row: Deployment, now_served: Served | None, due: Due) -> Iterator[Load]:
    """What could be loaded, the best first."""
    wanted = _wanted(row)
    if now_served is not None and now_served.is_of(row.version):
        del wanted[0]
    elif now_served is not None and any(now_served.is_of(former) for former in row.formers):
        # It answers meanwhile, so there is no need to go back before going on.
        wanted.reverse()
    for version, settled in wanted:
        if settled and due(key_of(row, version)):
            yield Load(row, version)
