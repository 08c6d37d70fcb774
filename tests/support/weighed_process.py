"""A process that takes as much memory as a test says its calls hold, and is looked at as a real one is."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from typing import Any

from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import ANONYMOUS, Principal
from inferplane.server.rpc.intake.arrivals import LOOK_INTERVAL, Arrivals
from inferplane.server.rpc.intake.sockets import Socket
from inferplane.server.rpc.methods import Method

__all__ = ["BASE", "BUDGET", "MIB", "Arriving", "Process", "calls", "pour"]

MIB = 1 << 20
BASE = 100
"""MiB that the process takes by itself."""
BUDGET = 16


class Arriving:
    """A call of whose body, or next message, `held` MiB are there."""

    def __init__(self, user: str = "", *, streams: bool = False) -> None:
        access = AccessRule(authenticated=True) if user else AccessRule(public=True)
        self.method = Method("/s/m", "s", "m", access, streams=streams)
        self.principal = Principal(f"users/{user}") if user else ANONYMOUS
        self.connection = f"ipv4:192.0.2.1:{user}"
        self.started = 0.0
        self.held = 0.0
        self.delivered = 0
        self.headers = 0
        self.ended = ""

    def end(self, error: InferplaneError) -> None:
        self.ended = str(error)


class Process:
    """Takes what its calls hold. What ended calls held is used again first, and given back when it is told to. Each
    caller has one connection, of which the kernel tells how much it has brought, unless it does not. `overhead` are
    headers, in MiB a second of each."""

    def __init__(self, *, gives_back: bool = True, kernel_tells: bool = True, overhead: float = 0.0) -> None:
        some_calls: Any = self.open_calls
        self.arrivals = Arrivals(BUDGET * MIB, 60, some_calls, self)
        self.connections = self.arrivals.connections
        self._gone: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()
        self._inodes: Counter[str] = Counter()
        self.kept: defaultdict[str, float] = defaultdict(float)
        self._kernel_tells = kernel_tells
        self._overhead = overhead
        self.own: float = BASE
        self.calls: list[Arriving] = []
        self.unread_calls: list[Arriving] = []
        """Nothing is read of them, though they go on."""
        self.closed: list[str] = []
        self.now = 1000.0
        self._gives_back = gives_back
        self._highest = 0.0

    def begin(self, *calls: Arriving) -> None:
        for call in calls:
            self.calls.append(call)
            call.started = self.now
            some_call: Any = call
            if call.method.streams:
                self.arrivals.message(some_call)
            else:
                self.arrivals.body(some_call, self.now)

    def unread(self, *calls: Arriving) -> None:
        """Nothing is read of these any more, though they go on."""
        for call in calls:
            self.calls.remove(call)
            self.unread_calls.append(call)
            some_call: Any = call
            self.arrivals.over(some_call)

    def open_calls(self) -> list[Arriving]:
        return self.calls + self.unread_calls

    def throw_away(self, connection: str, size: float) -> None:
        """So many MiB came that belong to no call any more."""
        self._passed[connection] += int(size * MIB)

    def deliver(self, connection: str, size: float, *, kept: bool = False) -> None:
        """So many MiB came whole. They may be kept because something beside them is not, until nothing of their
        connection is open any more."""
        self._passed[connection] += int(size * MIB)
        self.connections.deliver(connection, int(size * MIB))
        if kept:
            self.kept[connection] += size

    @property
    def held(self) -> float:
        return sum(call.held for call in self.calls) + sum(self.kept.values())

    def hang_up(self, connections: Collection[str]) -> int:
        """All that came by them goes; who was there comes again, by new connections."""
        self.closed += connections
        for connection in connections:
            self._passed[connection] = self._gone[connection] = 0
            self._inodes[connection] += 1
        for call in self.open_calls():
            if call.connection in connections:
                call.ended = "closed"
        self.unread_calls = [call for call in self.unread_calls if not call.ended]
        return len(connections)

    def present(self) -> dict[str, Socket]:
        """What each connection has brought so far."""
        if not self._kernel_tells:
            return {}
        total = self._gone.copy()
        for call in self.calls:
            total[call.connection] += int(call.held * MIB)
        total.update(self._passed)
        headers = int(self._overhead * MIB * (self.now - 1000))
        return {name: Socket(self._inodes[name], size + headers) for name, size in total.items()}

    def look(self) -> list[Arriving]:
        """Those that are ended at the next look."""
        self.now += LOOK_INTERVAL
        self._highest = max(self._highest, self.own + self.held)
        give_back = self.arrivals.look(self.now, int(self._highest * MIB))
        ended = [call for call in self.calls if call.ended]
        for call in ended:
            self.calls.remove(call)
            if call.connection not in self.closed:
                self._gone[call.connection] += int(call.held * MIB)
            gone: Any = call
            self.arrivals.over(gone)
        for connection in self.kept.keys() - {call.connection for call in self.open_calls()}:
            del self.kept[connection]
        if give_back:
            if self._gives_back:
                self._highest = 0.0
            self.arrivals.given_back()
        return ended

    def looks(self, count: int) -> list[Arriving]:
        return [call for _ in range(count) for call in self.look()]


def calls(count: int, user: str = "", *, streams: bool = False, held: float = 0.0) -> list[Arriving]:
    made = [Arriving(user, streams=streams) for _ in range(count)]
    for call in made:
        call.held = held
    return made


def pour(
    process: Process,
    kinds: list[Callable[[], list[Arriving]]],
    rate: float,
    beside: Callable[[int], None] = lambda _look: None,
) -> float:
    """Each kind of attacker keeps his calls open and lets them take `rate` MiB a look together, up to 4 each, for five
    minutes, and `beside` happens before each look; the most that was held."""
    mine: list[list[Arriving]] = [[] for _ in kinds]
    most = 0.0
    for number in range(round(300 / LOOK_INTERVAL)):
        beside(number)
        for position, make in enumerate(kinds):
            mine[position] = [call for call in mine[position] if not call.ended]
            if len(mine[position]) < 20:
                fresh = make()[: 20 - len(mine[position])]
                process.begin(*fresh)
                mine[position] += fresh
            for call in mine[position]:
                call.held = min(4.0, call.held + rate / len(kinds) / 20)
        most = max(most, process.held)
        process.look()
    return most
