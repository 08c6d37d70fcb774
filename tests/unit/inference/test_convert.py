"""Domain objects as messages."""

from inferplane.server.ids import now, uuid7
from inferplane.server.inference.convert import deployment_message
from inferplane.server.inference.deployments import Deployment, VersionInfo
from inferplane.server.tensors import Signature, TensorSpec

VERSION = VersionInfo(
    "m",
    3,
    "sha256:" + "0" * 64,
    10,
    Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)),
    "",
)


def test_clients_that_know_no_targets_read_the_primary_one() -> None:
    message = deployment_message(Deployment(uuid7(), "d", VERSION, "READY", "", now(), "users/alice", now()))
    (primary,) = message.targets
    assert message.model_version == primary.model_version == "models/m/versions/3"
    assert (message.digest, message.signature) == (primary.digest, primary.signature)
