"""Which output holds the class, and pages of what one may see."""

from collections.abc import Sequence

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import registry
from inferplane.server.artifact.registry import Model, label_output, visible_models
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.tensors import DATATYPES, Signature, TensorSpec


def signature(*outputs: TensorSpec) -> Signature:
    return Signature((TensorSpec("x", "FP32", (-1, 4)),), outputs)


FLOATS = {"FP16", "FP32", "FP64"}


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("shape", [(), (-1,), (5,), (-1, 1), (-1, 10), (-1, -1), (-1, 1, 1)])
def test_classes_are_rows_of_one_and_scores_rows_of_many(datatype: str, shape: tuple[int, ...]) -> None:
    fits = len(shape) == 2 if datatype in FLOATS else shape in {(-1,), (5,), (-1, 1)}
    outputs = signature(TensorSpec("out", datatype, shape))
    if fits:
        assert label_output(outputs, "out") == "out"
        return
    with pytest.raises(InferplaneError) as caught:
        label_output(outputs, "out")
    assert caught.value.reason == ErrorReason.ERROR_REASON_INVALID_FIELD
    assert [path for path, _ in caught.value.violations] == ["label_output"]


CLASSES, SCALAR = ("INT64", (-1,)), ("INT64", ())


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"label": CLASSES}, "label"),
        ({"output_label": CLASSES, "probabilities": ("FP32", (-1, 10))}, "output_label"),
        ({"output_label": CLASSES, "label": CLASSES}, "label"),
        ({"output_label": CLASSES, "label": SCALAR}, "output_label"),
        ({"label": SCALAR}, ""),
        ({"Label": CLASSES, "y": CLASSES}, ""),
    ],
)
def test_a_name_that_says_so_is_the_default(outputs: dict[str, tuple[str, tuple[int, ...]]], expected: str) -> None:
    specs = [TensorSpec(name, *kind) for name, kind in outputs.items()]
    assert label_output(signature(*specs), "") == expected


def test_an_output_that_is_not_there_is_refused() -> None:
    with pytest.raises(InferplaneError):
        label_output(signature(TensorSpec("label", "INT64", (-1,))), "x")


class Models:
    """So many models with descriptions of the same length."""

    def __init__(self, count: int, description: str = "") -> None:
        self.all = [Model(f"m{number:03}", description, now(), "users/test") for number in range(count)]

    async def models(self, after: str | None, limit: int) -> Sequence[Model]:
        return [model for model in self.all if after is None or model.name > after][:limit]


@pytest.mark.parametrize("scanned", [1, 2, 5, 100])
async def test_the_last_page_has_no_successor(monkeypatch: pytest.MonkeyPatch, scanned: int) -> None:
    monkeypatch.setattr(registry, "_SCANNED", scanned)
    found, after = await visible_models(Models(10).models, None, 5, lambda name: int(name[1:]) % 2 == 0)
    assert ([model.name for model in found], after) == (["m000", "m002", "m004", "m006", "m008"], None)


async def test_long_descriptions_make_shorter_pages_but_never_empty_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PAGE_BYTES", 25)
    found, after = await visible_models(Models(5, "ä" * 5).models, None, 4, lambda _: True)
    assert ([model.name for model in found], after) == (["m000", "m001"], "m001")
    monkeypatch.setattr(registry, "PAGE_BYTES", 1)
    found, after = await visible_models(Models(5, "ä" * 5).models, "m003", 4, lambda _: True)
    assert ([model.name for model in found], after) == (["m004"], None)
