"""What happens around every call, listed once.

The order, outermost first, and why:

1. `request_identity` - everything after it logs and answers with the request id and inside the trace.
2. `observation` - counts and logs every call by the status that it really got, refused ones included.
3. `error_translation` - whatever is raised further in, the deserialiser's errors too, leaves as a status.
4. `deadlines` - the time that a caller can make us spend includes the time spent on verifying them.
5. `authentication` - nothing of the request is parsed before the caller is known.
6. `authorization` - needs the principal, and checks each message of a stream.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from inferplane.server.access.admission import Admission
from inferplane.server.rpc.interceptors.authentication import authentication
from inferplane.server.rpc.interceptors.authorization import authorization
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.interceptors.error_translation import error_translation
from inferplane.server.rpc.interceptors.observation import Observation
from inferplane.server.rpc.interceptors.request_identity import request_identity
from inferplane.server.rpc.pipeline import Interceptor

__all__ = ["Guards", "interceptors"]


@dataclass(frozen=True, slots=True)
class Guards:
    """What the interceptors need from the composition root."""

    admission: Admission
    deadlines: DeadlinePolicy
    registry: CollectorRegistry


def interceptors(guards: Guards) -> tuple[Interceptor, ...]:
    """All interceptors, outermost first."""
    return (
        request_identity,
        Observation(guards.registry),
        error_translation,
        guards.deadlines,
        authentication(guards.admission),
        authorization(guards.admission),
    )
