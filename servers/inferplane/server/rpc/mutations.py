"""Runs a mutation under its idempotency key."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from inferplane.server.rpc.call import current_call
from inferplane.server.storage.unit_of_work import UnitOfWork, UnitOfWorkFactory

__all__ = ["Mutations"]


AnswerT = TypeVar("AnswerT", bound=Message)
PreparedT = TypeVar("PreparedT")


class Mutations:
    """The one way in which a service changes its tables on a caller's behalf."""

    def __init__(self, units_of_work: UnitOfWorkFactory) -> None:
        self._units_of_work = units_of_work

    async def run(
        self, request: Message, answer_type: type[AnswerT], work: Callable[[UnitOfWork], Awaitable[AnswerT]]
    ) -> AnswerT:
        """Do `work` and commit it with its answer, or answer what was answered to this key before."""
        async with self._units_of_work(current_call().actor) as unit:
            earlier = await _claim(unit, request)
            if earlier is not None:
                return answer_type.FromString(earlier)
            answer = await work(unit)
            await unit.commit(answer.SerializeToString())
        return answer

    async def run_prepared(
        self,
        request: Message,
        answer_type: type[AnswerT],
        prepare: Callable[[], Awaitable[PreparedT]],
        work: Callable[[UnitOfWork, PreparedT], Awaitable[AnswerT]],
    ) -> AnswerT:
        """The same, where `work` needs something that others must be asked for: no connection is held meanwhile.

        What was answered before is answered again without asking them.
        """
        if request.idempotency_key:  # type: ignore[attr-defined] # every mutation's request has it
            async with self._units_of_work(current_call().actor) as unit:
                earlier = await _claim(unit, request)
            if earlier is not None:
                return answer_type.FromString(earlier)
        prepared = await prepare()
        return await self.run(request, answer_type, lambda unit: work(unit, prepared))


async def _claim(unit: UnitOfWork, request: Message) -> bytes | None:
    key: str = request.idempotency_key  # type: ignore[attr-defined] # every mutation's request has it
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("idempotency_key")
    return await unit.claim(current_call().method.path, key, body.SerializeToString(deterministic=True))
