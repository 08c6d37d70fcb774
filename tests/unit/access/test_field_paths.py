"""The values that an access rule's field path leads to."""

from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from inferplane.common.v1.access_pb2 import Permission, PermissionRule
from inferplane.inference.v1.deployment_pb2 import Deployment, Target
from inferplane.inference.v1.deployment_service_pb2 import UpdateDeploymentRequest
from inferplane.server.access.admission import Admission
from inferplane.server.access.snapshot import GrantRow
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal
from inferplane.server.rpc.interceptors.authorization import _FieldsCheck, values_at
from tests.support.policy import compile_snapshot

ALICE = Principal("users/alice")
PATH = "deployment.targets.model_version"
REQUEST = UpdateDeploymentRequest(
    deployment=Deployment(name="deployments/m", targets=[Target(model_version="a"), Target(model_version="b")])
)


@pytest.mark.parametrize(
    ("request_", "path", "values"),
    [
        (REQUEST, "idempotency_key", [""]),
        (REQUEST, "deployment.name", ["deployments/m"]),
        (REQUEST, "deployment.targets.model_version", ["a", "b"]),
        (UpdateDeploymentRequest(), "deployment.name", [""]),
        (UpdateDeploymentRequest(), "deployment.targets.model_version", []),
    ],
)
def test_a_path_leads_through_messages_and_to_every_element_of_a_list(
    request_: UpdateDeploymentRequest, path: str, values: list[str]
) -> None:
    assert list(values_at(request_, path)) == values


def test_a_message_that_names_thousands_is_refused_before_they_are_looked_up() -> None:
    rule = PermissionRule(
        permission=Permission.PERMISSION_DEPLOYMENTS_WRITE, fields=PermissionRule.Fields(paths=[PATH])
    )
    snapshot = compile_snapshot(1, [GrantRow(ALICE.subject, "deployer", "*")], [])
    unused: Any = None
    check = _FieldsCheck(ALICE, rule, Admission(unused, lambda: snapshot))
    check(REQUEST)
    many = [Target(model_version=f"models/m/versions/{number}") for number in range(1, 5000)]
    with pytest.raises(InferplaneError) as refused:
        check(UpdateDeploymentRequest(deployment=Deployment(targets=many)))
    assert refused.value.violations == ((PATH, "must be at most 64"),)


def test_of_half_a_million_names_no_more_are_looked_at_than_may_be_there() -> None:
    looked_at = 0

    class Targets(list[Target]):
        def __iter__(self) -> Iterator[Target]:
            nonlocal looked_at
            for target in super().__iter__():
                looked_at += 1
                yield target

    message: Any = SimpleNamespace(targets=Targets([Target()] * 500_000))
    list(islice(values_at(message, "targets.model_version"), 65))
    assert looked_at == 65
