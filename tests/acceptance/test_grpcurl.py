"""grpcurl, a foreign client with no proto files, lists, describes and calls every service."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.onnx_models import identity
from tests.support.up import Up

GRPCURL = Path(sys.executable).with_name("grpcurl")

EXPECTED = {
    "auth": {"inferplane.auth.v1.AuthService", "inferplane.auth.v1.IdentityService"},
    "artifact": {"inferplane.artifact.v1.ArtifactService", "inferplane.artifact.v1.ModelRegistryService"},
    "inference": {
        "inference.GRPCInferenceService",
        "inferplane.inference.v1.InferenceService",
        "inferplane.inference.v1.DeploymentService",
    },
    "reporting": {"inferplane.reporting.v1.ReportingService"},
}
STANDARD = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture(scope="module")
def token(up: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    async def prepare() -> str:
        async with up.admin() as plane:
            path = tmp_path_factory.mktemp("model") / "model.onnx"
            path.write_bytes(identity("FP32", ["n"]).SerializeToString())
            await plane.artifact.push("curled", path)
            await plane.inference.deploy("curled")
            return await plane.auth.access_token()

    return asyncio.run(prepare())


def grpcurl(up: Up, service: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    command = [GRPCURL, "-plaintext", *options, up.endpoints[service], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(up: Up, service: str, method: str, token: str = "", **request: Any) -> Any:
    options = ("-d", json.dumps(request), *(("-H", f"authorization: Bearer {token}") if token else ()))
    return json.loads(grpcurl(up, service, method, options=options))


@pytest.mark.parametrize("service", EXPECTED)
def test_it_lists_every_service(up: Up, service: str) -> None:
    assert set(grpcurl(up, service, "list").split()) == EXPECTED[service] | STANDARD


@pytest.mark.parametrize("service", EXPECTED)
def test_it_describes_every_service_and_message(up: Up, service: str) -> None:
    for name in EXPECTED[service] | STANDARD:
        described = grpcurl(up, service, "describe", name)
        methods = [line.split() for line in described.splitlines() if line.strip().startswith("rpc ")]
        assert methods
        for words in methods:
            for message in (word for word in words if word.startswith(".")):
                assert "is a message" in grpcurl(up, service, "describe", message.strip(".;"))


def test_health_answers_check_and_list(up: Up) -> None:
    assert call(up, "auth", "grpc.health.v1.Health/Check") == {"status": "SERVING"}
    statuses = call(up, "inference", "grpc.health.v1.Health/List")["statuses"]
    assert set(statuses) == EXPECTED["inference"] | {""}
    assert all(entry == {"status": "SERVING"} for entry in statuses.values())


def test_it_logs_in_and_asks_who_it_is(up: Up) -> None:
    admin = up.ready["admin"]
    password = Path(admin["password_file"]).read_text().strip()
    answer = call(up, "auth", "inferplane.auth.v1.AuthService/Login", username=admin["username"], password=password)
    token = answer["tokens"]["access_token"]
    who = call(up, "auth", "inferplane.auth.v1.AuthService/WhoAmI", token)
    assert who["identity"]["subject"] == "users/admin"


def test_it_calls_identity(up: Up, token: str) -> None:
    users = call(up, "auth", "inferplane.auth.v1.IdentityService/ListUsers", token)["users"]
    assert "users/admin" in [user["name"] for user in users]


def test_it_calls_the_registry(up: Up, token: str) -> None:
    model = call(up, "artifact", "inferplane.artifact.v1.ModelRegistryService/GetModel", token, name="models/curled")
    assert model["name"] == "models/curled"


def test_it_reads_bytes(up: Up, token: str) -> None:
    name = "models/curled/versions/1"
    part = call(up, "artifact", "inferplane.artifact.v1.ArtifactService/ReadArtifact", token, modelVersion=name)
    assert part["data"]


def test_it_predicts_with_typed_values(up: Up, token: str) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [3], "doubles": {"values": [1, 2.5, -3]}}
    answer = call(
        up,
        "inference",
        "inferplane.inference.v1.InferenceService/Predict",
        token,
        deployment="deployments/curled",
        inputs=[tensor],
        outputEncoding="TENSOR_ENCODING_TYPED",
    )
    assert answer["outputs"][0]["doubles"]["values"] == [1, 2.5, -3]
    assert answer["model_version"] == "models/curled/versions/1"


def test_it_speaks_the_open_inference_protocol(up: Up, token: str) -> None:
    answer = call(up, "inference", "inference.GRPCInferenceService/ModelReady", token, name="curled")
    assert answer == {"ready": True}


def test_it_calls_deployments_and_reporting(up: Up, token: str) -> None:
    service = "inferplane.inference.v1.DeploymentService/GetDeployment"
    assert call(up, "inference", service, token, name="deployments/curled")["state"] == "STATE_READY"
    service = "inferplane.reporting.v1.ReportingService/QueryMetrics"
    assert isinstance(call(up, "reporting", service, token, model="models/curled"), dict)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_reflections_describe_health_with_list(up: Up, version: str) -> None:
    """grpcurl of this version asks v1alpha alone, so both are asked here."""
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health")
    with grpc.insecure_channel(up.endpoints["auth"]) as channel:
        method: Any = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        answer = reflection_pb2.ServerReflectionResponse.FromString(next(method(iter([request.SerializeToString()]))))
    (file,) = answer.file_descriptor_response.file_descriptor_proto
    service = descriptor_pb2.FileDescriptorProto.FromString(file).service[0]
    assert [method.name for method in service.method] == ["Check", "Watch", "List"]
