"""A prediction from its arrival to its outcome."""

import time

from inferplane.server.access.snapshot import Route
from inferplane.server.limits import MAX_CLIENT_REQUEST_ID

__all__ = ["Attempt"]


class Attempt:
    """A prediction that is asked for. `route` is None until its caller was authorized."""

    __slots__ = ("arrived_ns", "caller", "client_request_id", "id", "route", "started_ns")

    def __init__(self, prediction_id: str, caller: str) -> None:
        self.id = prediction_id
        self.caller = caller
        self.route: Route | None = None
        self.client_request_id = ""
        self.arrived_ns = time.time_ns()
        self.started_ns = time.monotonic_ns()

    def named(self, text: str) -> None:
        """Keep the id that the client gave to its request, within bounds."""
        if text:
            kept = text.encode()[:MAX_CLIENT_REQUEST_ID].decode(errors="ignore")
            self.client_request_id = kept.replace("\0", "")
