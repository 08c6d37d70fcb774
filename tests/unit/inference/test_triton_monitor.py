"""What the watch over Triton makes of answers that nobody foresaw."""

from typing import Any

import pytest

from inferplane.server.inference.triton_monitor import TritonMonitor, Wanted
from inferplane.server.tasks import ContainedError


class Link:
    """A Triton that is there, of whose models nobody can say anything."""

    def __init__(self, end: BaseException) -> None:
        self._end = end

    async def live(self) -> bool:
        return True

    async def model_ready(self, _name: str, _version: int) -> bool:
        raise self._end


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_a_question_that_would_end_the_process_fails_the_watch_alone(end: BaseException) -> None:
    link: Any = Link(end)
    with pytest.raises(ContainedError):
        await TritonMonitor(link, lambda: [Wanted("m", 1, ready=True)], lambda _up: None).run()
