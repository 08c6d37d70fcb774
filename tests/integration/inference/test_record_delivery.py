"""Records of predictions reach Reporting, however large the answers were and however slowly it takes them."""

import asyncio
from typing import Any

from tritonclient.grpc import service_pb2

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.server.access.snapshot import Route
from inferplane.server.inference.records.delivery import Delivery
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.record_sink import Sink
from tests.support.stand import data_plane, infer_request, target

MIB = 1 << 20
SCORES = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1, -1)),))


class SlowSink(Sink):
    """Takes a batch when it is told to, and a while after that; keeps what it held of each."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.records: list[PredictionRecord] = []

    async def store(self, records: list[PredictionRecord]) -> None:
        await self.open.wait()
        await asyncio.sleep(0.05)
        await super().store(records)
        self.records += records


def scores(rows: int, columns: int) -> service_pb2.ModelInferResponse:
    answer = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    answer.outputs.add(name="y", datatype="FP32", shape=[rows, columns])
    answer.raw_output_contents.append(bytes(4 * rows * columns))
    return answer


async def test_no_record_is_lost_of_large_answers_nor_of_others_beside_them() -> None:
    sink = SlowSink()
    large, small = (scores(*shape).SerializeToString() for shape in ((4, MIB // 4), (1, 3)))
    async with data_plane([Route("m", target(signature=SCORES, label_output="y"), ready=True)]) as plane:
        delivery = Delivery(plane.notes, sink)
        running = asyncio.create_task(delivery.run())
        plane.triton.answer = lambda request: large if request.id == "large" else small

        async def ask(user: str, name: str, count: int) -> None:
            for _ in range(count):
                await plane.infer(infer_request(id=name), user=user)

        await asyncio.gather(*(ask("alice", "large", 25) for _ in range(4)), ask("bob", "small", 100))
        sink.open.set()
        await delivery.flush()
        running.cancel()
        assert plane.count("inferplane_prediction_records_dropped_total") == 0
        assert len(set(sink.stored)) == 200
        labels: dict[Any, set[int]] = {}
        for record in sink.records:
            labels.setdefault(record.caller, set()).add(len(record.predicted_labels))
        assert labels == {"users/alice": {4}, "users/bob": {1}}
