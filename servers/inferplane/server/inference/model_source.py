"""The registry as seen from here: which version a name means."""

from collections.abc import Callable
from typing import Any

import grpc

from inferplane.artifact.v1 import model_registry_service_pb2
from inferplane.server.inference.deployments import VersionInfo
from inferplane.server.names import VERSION
from inferplane.server.rpc.remote_errors import as_inferplane_error
from inferplane.server.tensors import signature_from_bytes

__all__ = ["ModelSource"]

LOOKUP_TIMEOUT = 5.0

Metadata = list[tuple[str, str]]


class ModelSource:
    """Calls the artifact service. `credentials` makes call metadata, given for whom the call is made."""

    def __init__(self, registry: Any, credentials: Callable[[str], Metadata]) -> None:
        self._registry = registry
        self._credentials = credentials

    async def version(self, name: str, on_behalf_of: str) -> VersionInfo:
        """What a version or alias name means now. Raises MODEL_NOT_FOUND, MODEL_VERSION_NOT_FOUND, …"""
        request = model_registry_service_pb2.GetModelVersionRequest(name=name)
        try:
            found = await self._registry.GetModelVersion(
                request, metadata=self._credentials(on_behalf_of), timeout=LOOKUP_TIMEOUT
            )
        except grpc.aio.AioRpcError as error:
            raise as_inferplane_error(error, "artifact") from error
        model, version = VERSION.parse(found.name)
        signature = signature_from_bytes(found.signature.SerializeToString())
        return VersionInfo(model, int(version), found.digest, found.size, signature, found.label_output)
