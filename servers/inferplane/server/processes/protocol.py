"""What a supervisor and a worker say to each other, as JSON lines on a socket pair."""

from dataclasses import dataclass

__all__ = ["HEARTBEAT_INTERVAL", "Failed", "Heartbeat", "Job", "Ready"]

HEARTBEAT_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told: `settings` is JSON with secrets, so it travels here and not in argv.

    `restarts` says how often its supervisor had to start it again.
    """

    service: str
    settings: str
    port: int
    metrics_port: int
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker answers once it accepts calls: the ports that are its own."""

    own_port: int
    metrics_port: int


@dataclass(frozen=True, slots=True)
class Failed:
    """What a worker answers instead if it cannot start: one sentence for whoever runs it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker's event loop says every HEARTBEAT_INTERVAL seconds: it lives, and whether it is SERVING."""

    serving: bool
