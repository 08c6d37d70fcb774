"""A call below grpc.aio's own objects, and one in two steps, behave as grpc.aio's unary calls do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from inferplane.server.inference.direct_call import Unary, _direct, direct_unary, usual_unary
from inferplane.server.inference.triton_link import SERVICE, TritonLink
from inferplane.server.inference.two_step_call import two_step_unary
from tests.support.mesh import until

PATH = "/test.Service/Method"
LARGEST = 1 << 20
METADATA = (("x-secret", "value"),)


class Service:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.behaviour: Callable[[bytes, Any], Any] = lambda body, _context: body
        self.metadata: dict[str, str] = {}
        self.cancelled = 0
        self.address = ""

    async def answer(self, body: bytes, context: Any) -> bytes:
        self.metadata = dict(context.invocation_metadata())
        try:
            made = self.behaviour(body, context)
            answer: bytes = await made if hasattr(made, "__await__") else made
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return answer


async def answer_and_fail(_body: bytes, context: Any) -> None:
    await context.write(b"answer")
    await context.abort(grpc.StatusCode.INTERNAL, "after all")


FAILS: Any = grpc.unary_stream_rpc_method_handler(answer_and_fail)


@pytest.fixture
async def service() -> AsyncIterator[tuple[Service, grpc.aio.Channel]]:
    service, server = Service(), grpc.aio.server()
    answer: Any = grpc.unary_unary_rpc_method_handler(service.answer)
    methods = {"test.Service": {"Method": answer, "Fails": FAILS}, SERVICE: {"ModelInfer": answer}}
    for name, handlers in methods.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    service.address = f"127.0.0.1:{port}"
    options = [("grpc.max_receive_message_length", LARGEST)]
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        yield service, channel
    await server.stop(None)


def in_two_steps(channel: grpc.aio.Channel, path: str) -> Unary:
    begin = two_step_unary(channel, path)

    async def call(body: bytes, metadata: tuple[tuple[str, str], ...], timeout: float) -> bytes:
        begun = await begin(body, metadata, timeout)
        return await begun.read()

    return call


WAYS = {"direct": direct_unary, "usual": usual_unary, "in two steps": in_two_steps}


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest, service: tuple[Service, grpc.aio.Channel]) -> Unary:
    return WAYS[request.param](service[1], PATH)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


def test_the_direct_way_is_there(service: tuple[Service, grpc.aio.Channel]) -> None:
    made, direct = direct_unary(service[1], PATH), _direct(None, b"")
    assert made.__qualname__ == direct.__qualname__


class Strange:
    """As another release of gRPC might have it: the call takes other arguments, or lacks a part."""

    def __init__(self, missing: str = "") -> None:
        for name in {"is_ok", "status", "cancel", "initial_metadata"} - {missing}:
            setattr(self, name, lambda: None)
        if not missing:
            setattr(self, "unary_unary", self.close)  # noqa: B010 - not the method's type, which is the point

    def call(self, *_arguments: Any) -> "Strange":
        return self

    def unary_unary(self, _body: bytes, _metadata: Any, _context: Any) -> "Strange":
        return self

    def close(self) -> None:
        """As a coroutine is that never began."""


@pytest.mark.parametrize(
    "below", [None, object(), Strange(), *map(Strange, ("is_ok", "status", "cancel", "initial_metadata"))]
)
def test_with_another_object_below_calls_go_the_usual_way(
    below: Any, service: tuple[Service, grpc.aio.Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service[1], "_channel", below)
    made, usual = direct_unary(service[1], PATH), usual_unary(service[1], PATH)
    assert made.__qualname__ == usual.__qualname__


async def test_body_and_metadata_arrive_and_the_answer_comes_back(
    service: tuple[Service, grpc.aio.Channel], call: Unary
) -> None:
    body = bytes(range(256)) * 1000
    assert await call(body, METADATA, 10) == body
    assert service[0].metadata["x-secret"] == "value"


async def test_a_call_that_fails_is_known_to_before_it_is_read(service: tuple[Service, grpc.aio.Channel]) -> None:
    async def abort(_body: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    service[0].behaviour = abort
    begun = await two_step_unary(service[1], PATH)(b"", METADATA, 10)
    await until(lambda: begun.has_failed)
    assert (await failure(begun.read())).code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_error_has_its_code_text_and_trailers(service: tuple[Service, grpc.aio.Channel], call: Unary) -> None:
    async def abort(_body: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now", (("why", "because"),))

    service[0].behaviour = abort
    error = await failure(call(b"", METADATA, 10))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now")
    assert dict(error.trailing_metadata())["why"] == "because"


async def test_the_deadline_holds(service: tuple[Service, grpc.aio.Channel], call: Unary) -> None:
    service[0].behaviour = lambda _body, _context: asyncio.sleep(60)
    assert (await failure(call(b"", METADATA, 0.2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: service[0].cancelled == 1)


async def test_a_deadline_that_is_over_is_missed_and_nothing_is_sent(
    service: tuple[Service, grpc.aio.Channel], call: Unary
) -> None:
    asked: list[bytes] = []

    def answer(body: bytes, _context: Any) -> bytes:
        asked.append(body)
        return b""

    service[0].behaviour = answer
    assert (await failure(call(b"late", METADATA, -1))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await call(b"in time", METADATA, 10)
    assert asked == [b"in time"]


async def test_a_caller_who_leaves_ends_the_call_at_the_other_side(
    service: tuple[Service, grpc.aio.Channel], call: Unary
) -> None:
    arrived = asyncio.Event()

    async def wait(_body: bytes, _context: Any) -> bytes:
        arrived.set()
        await asyncio.sleep(60)
        return b""

    service[0].behaviour = wait
    calling = asyncio.create_task(call(b"", METADATA, 50))
    await arrived.wait()
    calling.cancel()
    # What was raised is kept, and with it the call: to let go of it would end it as well.
    with pytest.raises(asyncio.CancelledError) as left:
        await calling
    await until(lambda: service[0].cancelled == 1)
    assert left.value.__traceback__ is not None


async def test_an_answer_above_the_limit_is_exhausted(service: tuple[Service, grpc.aio.Channel], call: Unary) -> None:
    service[0].behaviour = lambda _body, _context: bytes(LARGEST + 1)
    error = await failure(call(b"", METADATA, 10))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (error.details() or "")


async def test_nobody_there_is_unavailable() -> None:
    # The port of discard (RFC 863), on which nobody listens.
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        for way in WAYS.values():
            assert (await failure(way(channel, PATH)(b"", METADATA, 10))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_thousand_calls_that_are_cancelled_at_once_leave_the_channel_whole(
    service: tuple[Service, grpc.aio.Channel], call: Unary
) -> None:
    service[0].behaviour = lambda _body, _context: asyncio.sleep(60)
    calls = [asyncio.create_task(call(b"x", METADATA, 50)) for _ in range(1000)]
    await until(lambda: bool(service[0].metadata))
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    service[0].behaviour = lambda body, _context: body
    assert await call(b"after", METADATA, 10) == b"after"


@pytest.fixture
async def link(service: tuple[Service, grpc.aio.Channel]) -> AsyncIterator[TritonLink]:
    """The service, as the data plane reaches Triton."""
    link = TritonLink(service[0].address, None, LARGEST)
    yield link
    await link.close()


async def test_an_answer_stays_with_triton_until_it_is_read_however_many_were_read_before(
    service: tuple[Service, grpc.aio.Channel], link: TritonLink
) -> None:
    sent = asyncio.Event()

    def answer(body: bytes, context: Any) -> bytes:
        if body == b"held":
            context.add_done_callback(lambda _context: sent.set())
        return bytes(LARGEST if body else 0)

    service[0].behaviour = answer
    begin = link.predictions_in_two_steps()
    for _ in range(50):
        assert len(await (await begin(b"before", METADATA, 10)).read()) == LARGEST
    held = await begin(b"held", METADATA, 10)
    for _ in range(50):
        await (await begin(b"", METADATA, 10)).read()
    assert not sent.is_set()
    assert not held.has_failed
    assert len(await held.read()) == LARGEST
    await sent.wait()


async def test_an_answer_that_has_begun_can_be_read_after_its_timeout(
    service: tuple[Service, grpc.aio.Channel], link: TritonLink
) -> None:
    """Of one that is cancelled Triton gives no memory back."""
    service[0].behaviour = lambda _body, _context: bytes(LARGEST)
    held = await link.predictions_in_two_steps()(b"", METADATA, 0.2)
    await asyncio.sleep(0.4)
    assert len(await held.read()) == LARGEST


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_after_an_answer_is_the_outcome(service: tuple[Service, grpc.aio.Channel], way: str) -> None:
    call = WAYS[way](service[1], "/test.Service/Fails")
    assert (await failure(call(b"", METADATA, 10))).code() is grpc.StatusCode.INTERNAL
