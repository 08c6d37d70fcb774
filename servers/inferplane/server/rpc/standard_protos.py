"""Health's `List` and reflection v1, which no wheel that runs on protobuf 6 has.

Their messages are wire-compatible with what the wheels do have, so the descriptors are derived from those, in a
private pool: a second copy of a known file in the default pool fails with "duplicate symbol".
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

__all__ = ["HealthListRequest", "HealthListResponse", "LayeredPool"]

_Field = descriptor_pb2.FieldDescriptorProto


def _file_of(module: Any) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def _health_with_list() -> descriptor_pb2.FileDescriptorProto:
    """`grpc/health/v1/health.proto` with `rpc List`, as in the current specification."""
    file = _file_of(health_pb2)
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=_Field.TYPE_MESSAGE,
        type_name=".grpc.health.v1.HealthCheckResponse",
        label=_Field.LABEL_OPTIONAL,
    )
    response.field.add(
        name="statuses",
        number=1,
        type=_Field.TYPE_MESSAGE,
        type_name=".grpc.health.v1.HealthListResponse.StatusesEntry",
        label=_Field.LABEL_REPEATED,
    )
    file.service[0].method.add(
        name="List", input_type=".grpc.health.v1.HealthListRequest", output_type=".grpc.health.v1.HealthListResponse"
    )
    return file


def _reflection_v1() -> descriptor_pb2.FileDescriptorProto:
    """`grpc/reflection/v1/reflection.proto`: v1alpha under its new package."""
    serialized = _file_of(reflection_pb2)
    serialized.name = "grpc/reflection/v1/reflection.proto"
    serialized.package = "grpc.reflection.v1"
    old, new = ".grpc.reflection.v1alpha.", ".grpc.reflection.v1."
    for message in serialized.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for method in serialized.service[0].method:
        method.input_type = method.input_type.replace(old, new)
        method.output_type = method.output_type.replace(old, new)
    return serialized


_private: Any = descriptor_pool.DescriptorPool()
for _file in (_health_with_list(), _reflection_v1()):
    _private.Add(_file)


def _message(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_private.FindMessageTypeByName(name))


HealthListRequest = _message("grpc.health.v1.HealthListRequest")
HealthListResponse = _message("grpc.health.v1.HealthListResponse")


class LayeredPool:
    """A read-only descriptor pool: the private descriptors first, then the default pool's."""

    def __init__(self) -> None:
        self._layers: tuple[Any, Any] = (_private, descriptor_pool.Default())  # type: ignore[no-untyped-call] # theirs

    def _first(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._layers[0], method)(*arguments)
        except KeyError:
            return getattr(self._layers[1], method)(*arguments)

    # The names are those of DescriptorPool, whose place this takes.
    def FindFileByName(self, name: str) -> Any:  # noqa: N802 - its name
        return self._first("FindFileByName", name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - its name
        return self._first("FindFileContainingSymbol", symbol)

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802 - its name
        return self._first("FindMessageTypeByName", name)

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802 - its name
        return self._layers[1].FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802 - its name
        return self._layers[1].FindAllExtensions(message)
