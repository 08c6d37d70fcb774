"""What is known of a method before it is called: its shape and who may call it, read from the descriptors."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from inferplane.common.v1.access_pb2 import AccessRule, Permission, PermissionRule, access

__all__ = ["FOREIGN_ACCESS", "Method", "MissingAccessRuleError", "method_of"]


_POOL: descriptor_pool.DescriptorPool = descriptor_pool.Default()  # type: ignore[no-untyped-call] # their stubs


class MissingAccessRuleError(Exception):
    """A method says nowhere who may call it, so the server must not start."""


def _on(permission: Permission.ValueType, path: str) -> AccessRule:
    return AccessRule(permission=PermissionRule(permission=permission, fields=PermissionRule.Fields(paths=[path])))


_PUBLIC = AccessRule(public=True)
_AUTHENTICATED = AccessRule(authenticated=True)
_READ = _on(Permission.PERMISSION_DEPLOYMENTS_READ, "name")
_PREDICT = _on(Permission.PERMISSION_PREDICT, "model_name")
_OIP = "/inference.GRPCInferenceService/"

FOREIGN_ACCESS: Mapping[str, AccessRule] = {
    "/grpc.health.v1.Health/Check": _PUBLIC,
    "/grpc.health.v1.Health/Watch": _PUBLIC,
    "/grpc.health.v1.Health/List": _PUBLIC,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _PUBLIC,
    f"{_OIP}ServerLive": _PUBLIC,
    f"{_OIP}ServerReady": _PUBLIC,
    f"{_OIP}ServerMetadata": _AUTHENTICATED,
    f"{_OIP}ModelReady": _READ,
    f"{_OIP}ModelMetadata": _READ,
    f"{_OIP}ModelConfig": _READ,
    f"{_OIP}ModelStatistics": _READ,
    f"{_OIP}ModelInfer": _PREDICT,
    f"{_OIP}ModelStreamInfer": _PREDICT,
    # These reach past the models that a caller was granted; their handlers refuse every caller.
    f"{_OIP}RepositoryIndex": _AUTHENTICATED,
    f"{_OIP}RepositoryModelLoad": _AUTHENTICATED,
    f"{_OIP}RepositoryModelUnload": _AUTHENTICATED,
    f"{_OIP}SystemSharedMemoryStatus": _AUTHENTICATED,
    f"{_OIP}SystemSharedMemoryRegister": _AUTHENTICATED,
    f"{_OIP}SystemSharedMemoryUnregister": _AUTHENTICATED,
    f"{_OIP}CudaSharedMemoryStatus": _AUTHENTICATED,
    f"{_OIP}CudaSharedMemoryRegister": _AUTHENTICATED,
    f"{_OIP}CudaSharedMemoryUnregister": _AUTHENTICATED,
    f"{_OIP}TraceSetting": _AUTHENTICATED,
    f"{_OIP}LogSettings": _AUTHENTICATED,
}
"""Rules of the services whose descriptors are not ours."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method."""

    path: str
    service: str
    name: str
    access: AccessRule
    streams: bool
    """Whether requests, answers or both are streams."""


def method_of(service: str, name: str, *, streams: bool) -> Method:
    """Look up the rule of `service`/`name`; MissingAccessRuleError if there is none."""
    path = f"/{service}/{name}"
    rule = FOREIGN_ACCESS.get(path) or _declared_rule(service, name)
    if rule is None or rule.WhichOneof("rule") is None:
        raise MissingAccessRuleError(f"{path} has no (inferplane.common.v1.access) option")
    return Method(path, service, name, rule, streams)


def _declared_rule(service: str, name: str) -> AccessRule | None:
    try:
        descriptor: MethodDescriptor = _POOL.FindMethodByName(f"{service}.{name}")  # type: ignore[no-untyped-call] # their stubs
    except KeyError:
        return None
    options = descriptor.GetOptions()
    return options.Extensions[access] if options.HasExtension(access) else None
