"""`/metrics`, `/healthz` and `/readyz` of one process, on a thread of their own."""

import io
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Lock, Thread
from typing import IO, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from inferplane.server.log_pace import LogPace
from inferplane.server.processes.ports import port_in_use

__all__ = ["metrics_endpoint"]

log = structlog.get_logger()

MOST = 32
"""Connections served at once, each by a thread; beyond them the oldest goes."""
COLLECTING = 8
"""Of them, those whose metrics are collected; a collector that hangs leaves the others to probes."""
PATIENCE = 0.5
"""Seconds that one more waits for its turn to collect; less than HANG_UP_WAIT."""
HANG_UP_WAIT = 1.0
"""Seconds that a connection may take to end once it was hung up on; until then no other is taken."""
TIME_LIMIT = 10.0
"""Seconds that a connection may last."""
POLL = 0.2
HEAD = 16 << 10
"""Bytes of what a request asks and its headers, all of them together."""


@dataclass
class _Connection:
    socket: socket.socket
    thread: Thread
    since: float
    told: bool = False
    """Whether it was hung up on."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: list[_Connection] = []
        self._closing = Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one more connection where there is room for it, or can be made."""
        self._forget_ended()
        if len(self._connections) >= MOST and not self._end_oldest():
            self.shutdown_request(request)
            return
        thread = Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        thread.start()
        self._connections.append(_Connection(request, thread, time.monotonic()))

    def service_actions(self) -> None:
        """Hang up on those that last too long; called after each new connection, and every POLL seconds."""
        self._forget_ended()
        now = time.monotonic()
        for connection in self._connections:
            if now - connection.since > TIME_LIMIT:
                self._hang_up(connection)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and not while another thread hangs up on it: its number may be somebody else's then."""
        with self._closing:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only clients' faults come here, such as leaving or an endless head; they are not worth a log line."""

    def _end_oldest(self) -> bool:
        """Whether one has ended; waits once for each, as one whose collector hangs does not."""
        oldest = next((connection for connection in self._connections if not connection.told), None)
        if oldest is None:
            return False
        self._hang_up(oldest)
        oldest.thread.join(HANG_UP_WAIT)
        return not oldest.thread.is_alive()

    def _hang_up(self, connection: _Connection) -> None:
        """End what its thread waits for, and so the thread."""
        connection.told = True
        with self._closing, suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)

    def _forget_ended(self) -> None:
        self._connections = [connection for connection in self._connections if connection.thread.is_alive()]


class _Server6(_Server):
    address_family = socket.AF_INET6


class _LongHeadError(Exception):
    """More was sent than a request may begin with."""


class _Head(io.BufferedIOBase):
    """Reads lines of a connection while they are no more than HEAD bytes. Nothing else is read of it."""

    def __init__(self, connection: io.BufferedIOBase) -> None:
        self._connection = connection
        self._left = HEAD

    def readline(self, size: int | None = -1, /) -> bytes:
        most = self._left + 1
        line = self._connection.readline(most if size is None or size < 0 else min(size, most))
        self._left -= len(line)
        if self._left < 0:
            raise _LongHeadError
        return line

    def close(self) -> None:
        self._connection.close()
        super().close()


class _Silent(WSGIRequestHandler):
    def setup(self) -> None:
        """Bound what is read before anything is answered."""
        super().setup()
        self.rfile = _Head(self.rfile)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Probes are not worth a log line."""

    def get_stderr(self) -> IO[str]:
        """Where it would print why an answer could not be sent."""
        return io.StringIO()


@contextmanager
def metrics_endpoint(host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]) -> Iterator[int]:
    """Serve until the context is left; gives the port. Raises PortInUseError.

    `/healthz` is 200 while the process lives, `/readyz` is 200 while `ready()` and 503 otherwise.
    """
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
    pace = LogPace(1)
    turns = BoundedSemaphore(COLLECTING)

    def logged(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return application(environ, start_response)
        except Exception:
            if pace.passes():
                suppressed = pace.take_suppressed() or None
                log.exception("metrics_endpoint_failed", path=environ["PATH_INFO"], lines_suppressed=suppressed)
            raise

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics" if turns.acquire(timeout=PATIENCE):
                try:
                    return metrics(environ, start_response)
                finally:
                    turns.release()
            case "/metrics":
                status, body = "503 Service Unavailable", b"others are being answered\n"
            case "/healthz":
                status, body = "200 OK", b"alive\n"
            case "/readyz":
                status, body = ("200 OK", b"ready\n") if ready() else ("503 Service Unavailable", b"not ready\n")
            case _:
                status, body = "404 Not Found", b"try /metrics, /healthz or /readyz\n"
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    try:
        made = make_server(host, port, logged, _Server6 if ":" in host else _Server, _Silent)
    except OSError as error:
        raise port_in_use(host, port, "INFERPLANE_METRICS_BASE_PORT", error) from error
    with made as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": POLL}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
