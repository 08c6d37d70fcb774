"""The auth and artifact services in memory, with faults on demand; `fake_serving` has the rest."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inferplane.artifact.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    model_registry_service_pb2,
    model_registry_service_pb2_grpc,
    upload_pb2,
)
from inferplane.artifact.v1.model_pb2 import Model, ModelAlias, ModelVersion
from inferplane.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    identity_service_pb2,
    identity_service_pb2_grpc,
    session_pb2,
)
from inferplane.auth.v1.grant_pb2 import Grant
from inferplane.auth.v1.user_pb2 import User
from inferplane.common.v1.tensor_pb2 import ModelSignature, TensorSpec

REQUEST_ID = "0198c0de-0000-7000-8000-000000000001"
PREDICTION_ID = "0198c0de-0000-7000-8000-000000000002"
SIGNATURE = ModelSignature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
    outputs=[TensorSpec(name="label", datatype="INT64", shape=[-1])],
)


@dataclass
class Fault:
    """An error that a method answers with, `times` times."""

    code: grpc.StatusCode
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None
    times: int = 1


async def fail(context: Any, fault: Fault) -> NoReturn:
    """Abort as the real services do, with google.rpc details."""
    details: list[Message] = []
    if fault.reason:
        details.append(error_details_pb2.ErrorInfo(reason=fault.reason, domain="inferplane", metadata=fault.metadata))
    if fault.violations:
        broken = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in fault.violations]
        details.append(error_details_pb2.BadRequest(field_violations=broken))
    if fault.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=fault.retry_after))
        details.append(retry)
    packed = []
    for detail in details:
        packed.append(PackedAny())
        packed[-1].Pack(detail)
    message = f"the fake says {fault.reason}"
    status = status_pb2.Status(code=fault.code.value[0], message=message, details=packed)
    trailing = (("grpc-status-details-bin", status.SerializeToString()), ("inferplane-request-id", REQUEST_ID))
    await context.abort(fault.code, message, trailing)
    raise AssertionError("abort returned")


class Fakes:
    """What the services have in common: faults, and the access tokens that are good."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}
        self.calls: list[str] = []
        self.tokens: dict[str, str] = {}
        self.expired: set[str] = set()
        self.time_remaining: list[float] = []

    def expire_tokens(self) -> None:
        """Let every access token given so far be over."""
        self.expired |= set(self.tokens)

    async def enter(self, context: Any, method: str, *, public: bool = False) -> None:
        """Count the call, answer a fault if there is one, check the token."""
        self.calls.append(method)
        self.time_remaining.append(context.time_remaining())
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        if public:
            assert not token, f"{method} is public and must not get a token"
        elif not token:
            await fail(context, Fault(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING"))
        elif token in self.expired:
            await fail(context, Fault(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"))
        elif token not in self.tokens:
            await fail(context, Fault(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"))
        fault = self.faults.get(method)
        if fault is not None and fault.times > 0:
            fault.times -= 1
            await fail(context, fault)


class FakeAuth(auth_service_pb2_grpc.AuthServiceServicer, identity_service_pb2_grpc.IdentityServiceServicer):
    """Sessions with rotating refresh tokens; using one twice ends all sessions."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes
        self.passwords = {"alice": "correct horse battery"}
        self.refresh_tokens: dict[str, bool] = {}
        self.refreshes = 0
        self.reuses = 0
        self.logouts = 0
        self.devices: list[str] = []
        self.lifetime = timedelta(minutes=10)
        self.grants: list[Grant] = []

    def issue(self) -> session_pb2.TokenPair:
        """Make a pair of tokens that are good."""
        number = len(self.refresh_tokens)
        pair = session_pb2.TokenPair(access_token=f"access-{number}", refresh_token=f"refresh-{number}")
        pair.access_token_expire_time.FromDatetime(datetime.now(UTC) + self.lifetime)
        pair.refresh_token_expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
        self.fakes.tokens[pair.access_token] = "alice"
        self.refresh_tokens[pair.refresh_token] = True
        return pair

    async def Login(self, request: auth_service_pb2.LoginRequest, context: Any) -> auth_service_pb2.LoginResponse:
        await self.fakes.enter(context, "Login", public=True)
        if self.passwords.get(request.username) != request.password:
            await fail(context, Fault(grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED"))
        self.devices.append(request.device_token)
        return auth_service_pb2.LoginResponse(tokens=self.issue(), device_token=f"device of {request.username}")

    async def RefreshToken(
        self, request: auth_service_pb2.RefreshTokenRequest, context: Any
    ) -> auth_service_pb2.RefreshTokenResponse:
        await self.fakes.enter(context, "RefreshToken", public=True)
        if not self.refresh_tokens.get(request.refresh_token):
            self.reuses += 1
            self.fakes.tokens.clear()
            await fail(context, Fault(grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_REUSED"))
        self.refresh_tokens[request.refresh_token] = False
        self.refreshes += 1
        return auth_service_pb2.RefreshTokenResponse(tokens=self.issue())

    async def Logout(self, request: auth_service_pb2.LogoutRequest, context: Any) -> auth_service_pb2.LogoutResponse:
        await self.fakes.enter(context, "Logout")
        self.logouts += 1
        return auth_service_pb2.LogoutResponse()

    async def WhoAmI(self, request: auth_service_pb2.WhoAmIRequest, context: Any) -> auth_service_pb2.WhoAmIResponse:
        await self.fakes.enter(context, "WhoAmI")
        identity = session_pb2.Identity(subject="users/alice", session="sessions/1")
        identity.roles.add(role="caller", scope="digits*")
        return auth_service_pb2.WhoAmIResponse(identity=identity)

    async def GetJwks(self, request: auth_service_pb2.GetJwksRequest, context: Any) -> auth_service_pb2.GetJwksResponse:
        await self.fakes.enter(context, "GetJwks", public=True)
        return auth_service_pb2.GetJwksResponse(jwks_json=json.dumps({"keys": []}))

    async def CreateUser(self, request: identity_service_pb2.CreateUserRequest, context: Any) -> User:
        await self.fakes.enter(context, "CreateUser")
        assert request.idempotency_key
        self.passwords[request.user_id] = request.password
        return User(name=f"users/{request.user_id}")

    async def ListUsers(
        self, request: identity_service_pb2.ListUsersRequest, context: Any
    ) -> identity_service_pb2.ListUsersResponse:
        await self.fakes.enter(context, "ListUsers")
        users, start = sorted(self.passwords), int(request.page_token or 0)
        end = start + (request.page_size or 100)
        return identity_service_pb2.ListUsersResponse(
            users=[User(name=f"users/{user}") for user in users[start:end]],
            next_page_token=str(end) if end < len(users) else "",
        )

    async def GrantRole(self, request: identity_service_pb2.GrantRoleRequest, context: Any) -> Grant:
        await self.fakes.enter(context, "GrantRole")
        name = f"grants/{len(self.grants) + 1}"
        self.grants.append(Grant(name=name, subject=request.subject, role=request.role, scope=request.scope))
        return self.grants[-1]

    async def RevokeGrant(
        self, request: identity_service_pb2.RevokeGrantRequest, context: Any
    ) -> identity_service_pb2.RevokeGrantResponse:
        await self.fakes.enter(context, "RevokeGrant")
        if all(grant.name != request.name for grant in self.grants):
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "GRANT_NOT_FOUND"))
        self.grants = [grant for grant in self.grants if grant.name != request.name]
        return identity_service_pb2.RevokeGrantResponse()

    async def ListGrants(
        self, request: identity_service_pb2.ListGrantsRequest, context: Any
    ) -> identity_service_pb2.ListGrantsResponse:
        await self.fakes.enter(context, "ListGrants")
        found = [grant for grant in self.grants if request.subject in {"", grant.subject}]
        return identity_service_pb2.ListGrantsResponse(grants=found)


@dataclass
class FakeUpload:
    """Bytes received so far."""

    data: bytearray = field(default_factory=bytearray)
    complete: bool = False
    consumed: bool = False


class FakeArtifact(
    artifact_service_pb2_grpc.ArtifactServiceServicer, model_registry_service_pb2_grpc.ModelRegistryServiceServicer
):
    """Uploads and versions; streams break off where `breaks` says, once each."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes
        self.uploads: dict[str, FakeUpload] = {}
        self.breaks: list[int] = []
        self.break_fault = Fault(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        self.write_offsets: list[int] = []
        self.read_offsets: list[int] = []
        self.corrupt = False
        self.models: dict[str, Model] = {}
        self.versions: dict[str, ModelVersion] = {}
        self.blobs: dict[str, bytes] = {}
        self.aliases: dict[str, ModelAlias] = {}

    async def _break_at(self, position: int, context: Any) -> None:
        if self.breaks and position >= self.breaks[0]:
            self.breaks.pop(0)
            await fail(context, self.break_fault)

    async def WriteArtifact(
        self, request_iterator: AsyncIterator[artifact_service_pb2.WriteArtifactRequest], context: Any
    ) -> artifact_service_pb2.WriteArtifactResponse:
        await self.fakes.enter(context, "WriteArtifact")
        name, upload, first = "", FakeUpload(), True
        async for request in request_iterator:
            assert len(request.data) <= 1024 * 1024
            if first:
                name, first = request.upload, False
                upload = self.uploads.setdefault(name, upload)
                self.write_offsets.append(request.write_offset)
            if upload.consumed:
                await fail(context, Fault(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_NOT_OPEN"))
            assert request.write_offset == len(upload.data)
            await self._break_at(len(upload.data) + len(request.data), context)
            upload.data += request.data
            if request.HasField("finish"):
                upload.complete = True
        return artifact_service_pb2.WriteArtifactResponse(upload=self._upload(name))

    def _upload(self, name: str) -> upload_pb2.Upload:
        upload = self.uploads[name]
        data = bytes(upload.data) + (b"!" if self.corrupt else b"")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}" if upload.complete else ""
        return upload_pb2.Upload(name=name, committed_size=len(upload.data), complete=upload.complete, digest=digest)

    async def GetWriteStatus(
        self, request: artifact_service_pb2.GetWriteStatusRequest, context: Any
    ) -> upload_pb2.Upload:
        await self.fakes.enter(context, "GetWriteStatus")
        if request.upload not in self.uploads:
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND"))
        return self._upload(request.upload)

    async def ReadArtifact(
        self, request: artifact_service_pb2.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifact_service_pb2.ReadArtifactResponse]:
        await self.fakes.enter(context, "ReadArtifact")
        self.read_offsets.append(request.offset)
        blob = self.blobs[request.model_version] + (b"!" if self.corrupt else b"")
        for offset in range(request.offset, len(blob), 65536):
            await self._break_at(offset, context)
            yield artifact_service_pb2.ReadArtifactResponse(offset=offset, data=blob[offset : offset + 65536])

    async def CreateModel(self, request: model_registry_service_pb2.CreateModelRequest, context: Any) -> Model:
        await self.fakes.enter(context, "CreateModel")
        name = f"models/{request.model_id}"
        if name in self.models:
            await fail(context, Fault(grpc.StatusCode.ALREADY_EXISTS, "MODEL_EXISTS"))
        return self.models.setdefault(name, Model(name=name, description=request.description))

    async def GetModel(self, request: model_registry_service_pb2.GetModelRequest, context: Any) -> Model:
        await self.fakes.enter(context, "GetModel")
        if request.name not in self.models:
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
        return self.models[request.name]

    async def ListModels(
        self, request: model_registry_service_pb2.ListModelsRequest, context: Any
    ) -> model_registry_service_pb2.ListModelsResponse:
        await self.fakes.enter(context, "ListModels")
        return model_registry_service_pb2.ListModelsResponse(models=self.models.values())

    async def DeleteModel(
        self, request: model_registry_service_pb2.DeleteModelRequest, context: Any
    ) -> model_registry_service_pb2.DeleteModelResponse:
        await self.fakes.enter(context, "DeleteModel")
        if request.name not in self.models:
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
        if any(name.startswith(f"{request.name}/") for name in self.versions):
            await fail(context, Fault(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_EMPTY"))
        del self.models[request.name]
        return model_registry_service_pb2.DeleteModelResponse()

    async def CreateModelVersion(
        self, request: model_registry_service_pb2.CreateModelVersionRequest, context: Any
    ) -> ModelVersion:
        await self.fakes.enter(context, "CreateModelVersion")
        upload = self.uploads[request.upload]
        if upload.consumed:
            await fail(context, Fault(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_NOT_OPEN"))
        upload.consumed = True
        number = 1 + sum(name.startswith(f"{request.parent}/") for name in self.versions)
        return self.add_version(f"{request.parent}/versions/{number}", bytes(upload.data), request.label_output)

    def add_version(self, name: str, blob: bytes, label_output: str = "") -> ModelVersion:
        """Make a version of the bytes."""
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        self.blobs[name] = blob
        self.versions[name] = ModelVersion(
            name=name, digest=digest, size=len(blob), format="onnx", signature=SIGNATURE, label_output=label_output
        )
        return self.versions[name]

    async def GetModelVersion(
        self, request: model_registry_service_pb2.GetModelVersionRequest, context: Any
    ) -> ModelVersion:
        await self.fakes.enter(context, "GetModelVersion")
        alias = self.aliases.get(request.name)
        version = self.versions.get(alias.model_version if alias else request.name)
        if version is None:
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "MODEL_VERSION_NOT_FOUND"))
        return version

    async def ListModelVersions(
        self, request: model_registry_service_pb2.ListModelVersionsRequest, context: Any
    ) -> model_registry_service_pb2.ListModelVersionsResponse:
        await self.fakes.enter(context, "ListModelVersions")
        found = [version for name, version in self.versions.items() if name.startswith(f"{request.parent}/")]
        return model_registry_service_pb2.ListModelVersionsResponse(
            model_versions=found[::-1][: request.page_size or 100]
        )

    async def SetAlias(self, request: model_registry_service_pb2.SetAliasRequest, context: Any) -> ModelAlias:
        await self.fakes.enter(context, "SetAlias")
        self.aliases[request.name] = ModelAlias(name=request.name, model_version=request.model_version)
        return self.aliases[request.name]

    async def ListAliases(
        self, request: model_registry_service_pb2.ListAliasesRequest, context: Any
    ) -> model_registry_service_pb2.ListAliasesResponse:
        await self.fakes.enter(context, "ListAliases")
        return model_registry_service_pb2.ListAliasesResponse(aliases=self.aliases.values())
