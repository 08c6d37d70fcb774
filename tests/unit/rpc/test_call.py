"""What a call knows of itself."""

from typing import Any

from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.server.rpc.call import Call, arrive_with
from inferplane.server.rpc.methods import Method

METHOD = Method("/s/m", "s", "m", AccessRule(authenticated=True), streams=False)


class Context:
    """gRPC's, whose process ends where it is asked for the peer of a call that is over."""

    def __init__(self) -> None:
        self.over = False

    def peer(self) -> str:
        assert not self.over
        return "ipv4:192.0.2.1:1"


async def test_its_connection_is_known_when_it_is_over() -> None:
    context: Any = Context()
    call = Call(METHOD, context)
    context.over = True
    assert (call.connection, call.peer) == ("ipv4:192.0.2.1:1", "ipv4:192.0.2.1")


async def test_its_metadata_are_counted_and_kept_until_they_are_taken() -> None:
    context: Any = Context()
    arrive_with((("a", b""), ("key", b"value")))
    call, other = Call(METHOD, context), Call(METHOD, context)
    assert call.take_metadata() == (("a", b""), ("key", b"value"))
    assert (call.headers, call.metadata) == (73, ())
    assert (other.headers, other.metadata) == (0, ())
