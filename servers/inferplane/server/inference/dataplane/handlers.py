"""ModelInfer and ModelStreamInfer: they do the interceptors' work themselves, in one function each.

Their calls leave no log line where they go well: the prediction record is their access log.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc

from inferplane.server.access.admission import Admission
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.dataplane.outcome import Outcomes
from inferplane.server.inference.dataplane.streams import PredictionStream
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.triton_link import SERVICE
from inferplane.server.rpc.call import Call, Context
from inferplane.server.rpc.intake.bodies import BodyReader
from inferplane.server.rpc.interceptors.error_translation import error_translation
from inferplane.server.rpc.interceptors.request_identity import REQUEST_ID_KEY
from inferplane.server.rpc.methods import method_of
from inferplane.server.rpc.pipeline import Handler
from inferplane.server.rpc.running import RunningCalls

__all__ = ["PREDICTION_ID_KEY", "fused_handlers"]

PREDICTION_ID_KEY = "inferplane-prediction-id"


def fused_handlers(
    forwarder: Forwarder,
    admission: Admission,
    outcomes: Outcomes,
    calls: RunningCalls,
    bodies: BodyReader,
    unread: UnreadAnswers,
    stream_idle_limit: float,
) -> Mapping[str, Handler]:
    """The two handlers. `stream_idle_limit` is in seconds."""
    unary = method_of(SERVICE, "ModelInfer", streams=False)
    streaming = method_of(SERVICE, "ModelStreamInfer", streams=True)

    async def admit(call: Call) -> None:
        call.principal = await admission.authenticate(call.take_metadata(), lambda: call.peer)
        admission.authorize_somewhere(call.principal, call.method.access.permission.permission)

    async def receive(call: Call) -> bytes:
        try:
            await admit(call)
            unread.check(call.principal.subject)
            return await bodies.read(call)
        except BaseException as error:
            outcomes.turned_away(call.request_id, call.principal.subject, call.ending or error, call.peer)
            raise

    async def model_infer(_requests: Any, context: Context) -> bytes:
        call = Call(unary, context)
        calls.add(call)
        try:
            body = await receive(call)
            answer = await forwarder.predict(call.principal, call.request_id, body, context.time_remaining())
            call.afterwards(partial(unread.release, call.principal.subject, len(answer.data)))
        except BaseException as error:
            async with error_translation(call):
                raise error from None
            return b""
        finally:
            calls.discard(call)
        context.set_trailing_metadata(((PREDICTION_ID_KEY, call.request_id), (REQUEST_ID_KEY, call.request_id)))
        return answer.data

    async def model_stream_infer(_requests: Any, context: Context) -> None:
        call = Call(streaming, context)
        with calls.tracking(call):
            async with error_translation(call):
                try:
                    await admit(call)
                    calls.claim_stream(call)
                except BaseException as error:
                    outcomes.turned_away(call.request_id, call.principal.subject, call.ending or error, call.peer)
                    raise
                context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
                await PredictionStream(call, forwarder, admission, bodies, unread, stream_idle_limit).run()

    return {
        "ModelInfer": grpc.stream_unary_rpc_method_handler(model_infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(model_stream_infer),
    }
