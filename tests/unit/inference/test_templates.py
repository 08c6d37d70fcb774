"""What is remembered of a message is found again for those that differ in their contents alone, and for no others."""

from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from inferplane.server.inference.dataplane.request import raw_positions
from inferplane.server.inference.dataplane.templates import Templates

contents = st.lists(st.binary(min_size=0, max_size=20), min_size=1, max_size=4)


def message(raw: list[bytes], name: str = "m") -> bytes:
    request = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=raw)
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    data: bytes = request.SerializeToString()
    return data


def remembering(data: bytes) -> Templates[str]:
    templates = Templates[str](8)
    templates.remember(data, raw_positions(data), "known")
    return templates


@given(contents, st.data())
def test_other_contents_of_the_same_sizes_are_found(raw: list[bytes], data: st.DataObject) -> None:
    other = [data.draw(st.binary(min_size=len(each), max_size=len(each))) for each in raw]
    assert remembering(message(raw)).find(message(other)) == "known"


@given(contents, contents)
def test_contents_of_other_sizes_are_not_found(raw: list[bytes], other: list[bytes]) -> None:
    if [len(each) for each in raw] != [len(each) for each in other]:
        assert remembering(message(raw)).find(message(other)) is None


@given(contents, st.data())
def test_a_message_that_differs_anywhere_else_is_not_found(raw: list[bytes], data: st.DataObject) -> None:
    body = bytearray(message(raw))
    spans = raw_positions(bytes(body))
    outside = [at for at in range(len(body)) if not any(start <= at < end for start, end in spans)]
    at = data.draw(st.sampled_from(outside))
    body[at] ^= data.draw(st.integers(1, 255))
    assert remembering(message(raw)).find(bytes(body)) is None


def test_templates_are_bounded_in_number_and_size() -> None:
    templates = Templates[str](8)
    for number in range(1000):
        data = message([bytes(number)])
        templates.remember(data, raw_positions(data), "known")
    assert sum(len(same) for same in templates._by_length.values()) <= 8
    large = message([b"1"], name="m" * 2000)
    templates.remember(large, raw_positions(large), "known")
    assert templates.find(large) is None


def test_many_heads_of_one_length_are_all_found_and_the_newest_of_equal_ones() -> None:
    templates = Templates[str](64)
    bodies = [message([b"1"], name=f"m{number}") for number in range(9)]
    for turn in range(3):
        for body in bodies:
            templates.remember(body, raw_positions(body), f"{turn}")
    assert [templates.find(body) for body in bodies] == ["2"] * 9
