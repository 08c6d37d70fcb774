"""The endpoint of metrics and probes, which anybody who reaches the port may use, or keep busy."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from inferplane.server.processes import metrics_endpoint as module
from inferplane.server.processes.metrics_endpoint import metrics_endpoint
from inferplane.server.processes.ports import PortInUseError
from tests.support.http import get


class Broken(Collector):
    """Has no metrics to give."""

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("no metrics")


class Hanging(Collector):
    """Gives no metrics before it is told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def collect(self) -> Iterator[Metric]:
        self.end.wait()
        yield from ()


class Endpoint:
    """A running endpoint, and connections to it that last as long."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._stack = stack

    def connect(self, begin: bytes = b"") -> socket.socket:
        connection = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port), timeout=10))
        connection.sendall(begin)
        return connection


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with ExitStack() as stack:
        port = stack.enter_context(metrics_endpoint("127.0.0.1", 0, CollectorRegistry(), lambda: True))
        yield Endpoint(port, stack)


def ended(connection: socket.socket) -> bool:
    """Whether the server has hung up; waits for it."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_connections_that_say_nothing_take_few_threads_and_probes_are_answered_beside_them(endpoint: Endpoint) -> None:
    before = threading.active_count()
    for _ in range(3 * module.MOST):
        endpoint.connect(b"GET /m")
    assert get(endpoint.address, "/healthz") == 200
    assert threading.active_count() - before <= module.MOST


def test_a_connection_that_says_little_at_a_time_is_ended(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT", 0.3)
    connection = endpoint.connect(b"GET /")
    connection.settimeout(0.05)
    until = time.monotonic() + 10
    try:
        while not ended(connection):
            assert time.monotonic() < until
            connection.sendall(b"x")
    except ConnectionError:
        pass


def test_clients_that_hang_or_leave_write_nothing(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT", 0.3)
    leaving = endpoint.connect(b"GET /metrics HTTP/1.1\r\n")
    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leaving.close()
    hanging = [endpoint.connect(begin) for begin in (b"", b"GET /m", b"\xff\xfe\r\n", b"GET /metrics HTTP/9.9\r\n\r\n")]
    assert all(ended(connection) for connection in hanging)
    assert capfd.readouterr() == ("", "")


def with_head_of(size: int) -> bytes:
    """A request of `/healthz` whose head has so many bytes, at most 1 KiB a header."""
    request = b"GET /healthz HTTP/1.0\r\n" + (b"x: " + b"a" * 1019 + b"\r\n") * (size // 1024 - 1)
    return request + b"x: ".ljust(size - len(request) - 4, b"a") + b"\r\n\r\n"


def test_a_head_as_long_as_may_be_is_answered(endpoint: Endpoint) -> None:
    assert endpoint.connect(with_head_of(module.HEAD)).recv(1 << 16).startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize("head", [with_head_of(module.HEAD + 1), b"GET /" + b"a" * 60_000], ids=["headers", "path"])
def test_a_head_that_is_longer_ends_the_connection_and_writes_nothing(
    endpoint: Endpoint, capfd: pytest.CaptureFixture[str], head: bytes
) -> None:
    connection = endpoint.connect(head)
    with suppress(ConnectionError):
        assert connection.recv(1 << 16) == b""
    assert capfd.readouterr() == ("", "")


def test_metrics_that_cannot_be_collected_are_logged_as_everything_is(capfd: pytest.CaptureFixture[str]) -> None:
    registry = CollectorRegistry()
    registry.register(Broken())
    with capture_logs() as lines, metrics_endpoint("127.0.0.1", 0, registry, lambda: True) as port:
        assert get(f"127.0.0.1:{port}", "/metrics") == 500
    assert [line["event"] for line in lines] == ["metrics_endpoint_failed"]
    assert capfd.readouterr().err == ""


def test_probes_are_answered_beside_collectors_that_hang() -> None:
    registry, hanging = CollectorRegistry(), Hanging()
    with ExitStack() as stack:
        port = stack.enter_context(metrics_endpoint("127.0.0.1", 0, registry, lambda: True))
        stack.callback(hanging.end.set)
        registry.register(hanging)
        endpoint = Endpoint(port, stack)
        for _ in range(2 * module.MOST):
            endpoint.connect(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert get(endpoint.address, "/healthz") == 200


def test_where_no_connection_can_be_ended_the_new_one_is() -> None:
    hanging = threading.Event()
    with ExitStack() as stack:
        port = stack.enter_context(metrics_endpoint("127.0.0.1", 0, CollectorRegistry(), hanging.wait))
        stack.callback(hanging.set)
        endpoint = Endpoint(port, stack)
        for _ in range(module.MOST):
            endpoint.connect(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert all(ended(endpoint.connect(b"GET /healthz HTTP/1.0\r\n\r\n")) for _ in range(3))


def test_a_port_that_is_taken_is_said_with_the_setting_that_chooses_another() -> None:
    with (
        metrics_endpoint("127.0.0.1", 0, CollectorRegistry(), lambda: True) as port,
        pytest.raises(PortInUseError, match=f"127.0.0.1:{port}.*INFERPLANE_METRICS_BASE_PORT"),
        metrics_endpoint("127.0.0.1", port, CollectorRegistry(), lambda: True),
    ):
        pass
