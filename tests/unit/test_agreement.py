"""What client and server each say for themselves, so that neither loads the other, is the same."""

import numpy as np

from inferplane.client import names as client
from inferplane.client.tensors import DTYPES
from inferplane.server import names as server
from inferplane.server.access.roles import ROLE_PERMISSIONS
from inferplane.server.inference import typed_tensors
from inferplane.server.inference.dataplane import request
from inferplane.server.tensors import NUMPY_TYPES


def test_the_client_offers_the_roles_that_there_are() -> None:
    assert set(client.ROLES) == set(ROLE_PERMISSIONS)


def test_client_and_server_take_the_same_names() -> None:
    ours = {
        "model": client._MODEL, "alias": client._ALIAS, "user": client._USER, "version": client._VERSION,
    }  # fmt: skip
    assert {name: pattern.pattern for name, pattern in ours.items()} == {name: server.SEGMENTS[name] for name in ours}


def test_client_and_server_take_the_same_scopes() -> None:
    assert client._SCOPE.pattern == server.SCOPE


def test_client_and_server_hold_tensors_by_the_same_types() -> None:
    assert {name: np.dtype(kind) for name, kind in NUMPY_TYPES.items()} == dict(DTYPES)


def test_each_datatype_has_its_typed_field_in_both_protocols_or_in_none() -> None:
    all_types = {*NUMPY_TYPES, "BYTES"}
    assert set(typed_tensors._FIELDS) == all_types
    # The Open Inference Protocol has no field for FP16.
    assert set(request._TYPED_FIELDS) == all_types - {"FP16"}
