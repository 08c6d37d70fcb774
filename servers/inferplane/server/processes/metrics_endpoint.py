"""`/metrics`, `/healthz` and `/readyz` of one process, on a thread of their own."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

__all__ = ["metrics_endpoint"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Probes are not worth a log line."""


@contextmanager
def metrics_endpoint(host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]) -> Iterator[int]:
    """Serve until the context is left; gives the port.

    `/healthz` is 200 while the process lives, `/readyz` is 200 while `ready()` and 503 otherwise.
    """
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)
            case "/healthz":
                status, body = "200 OK", b"alive\n"
            case "/readyz":
                status, body = ("200 OK", b"ready\n") if ready() else ("503 Service Unavailable", b"not ready\n")
            case _:
                status, body = "404 Not Found", b"try /metrics, /healthz or /readyz\n"
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    with make_server(host, port, application, _Server6 if ":" in host else _Server, _Silent) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
