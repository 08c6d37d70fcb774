"""Exit codes, hints and errors as JSON."""

import grpc
import pytest

from inferplane.cli.exit_codes import ExitCode
from tests.support.cli import Cli
from tests.support.fake_services import REQUEST_ID
from tests.support.fake_serving import FakeMesh


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (grpc.StatusCode.INTERNAL, "INTERNAL", ExitCode.UNEXPECTED),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", ExitCode.INVALID_INPUT),
        (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED", ExitCode.NOT_AUTHENTICATED),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", ExitCode.PERMISSION_DENIED),
        (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND", ExitCode.NOT_FOUND),
        (grpc.StatusCode.ALREADY_EXISTS, "DEPLOYMENT_EXISTS", ExitCode.CONFLICT),
        (grpc.StatusCode.FAILED_PRECONDITION, "", ExitCode.CONFLICT),
        (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", ExitCode.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", ExitCode.UNAVAILABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", ExitCode.UNAVAILABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", ExitCode.INVALID_INPUT),
        (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT", ExitCode.DATA_LOSS),
    ],
)
async def test_each_status_has_its_exit_code(
    mesh: FakeMesh, logged_in: Cli, status: grpc.StatusCode, reason: str, code: ExitCode
) -> None:
    mesh.fault("DeleteDeployment", status, reason, times=9)
    result = await logged_in("undeploy", "digits", "--json")
    assert (result.code, result.out) == (code, "")
    assert (result.error["status"], result.error["reason"]) == (status.name, reason)
    assert (result.error["exit_code"], result.error["request_id"]) == (code, REQUEST_ID)


async def test_permission_denied_says_which_role_to_ask_for(mesh: FakeMesh, logged_in: Cli) -> None:
    metadata = {"permission": "DEPLOYMENTS_WRITE", "resource": "digits"}
    mesh.fault("DeleteDeployment", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", metadata=metadata)
    result = await logged_in("undeploy", "digits")
    assert "inferplane grant add deployer --to YOU --on 'digits'" in result.err
    assert "Traceback" not in result.err


async def test_permission_denied_everywhere_asks_for_no_more_than_was_needed(mesh: FakeMesh, logged_in: Cli) -> None:
    metadata = {"permission": "DEPLOYMENTS_WRITE"}
    mesh.fault("DeleteDeployment", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", metadata=metadata)
    assert "grant add deployer --to YOU --on 'NAME'" in (await logged_in("undeploy", "digits")).err


async def test_a_mesh_that_is_down_says_how_to_start_one(logged_in: Cli, mesh: FakeMesh) -> None:
    mesh.fault("WhoAmI", grpc.StatusCode.UNAVAILABLE, times=9)
    result = await logged_in("whoami")
    assert result.code == 8
    assert "inferplane up" in result.err


async def test_a_mesh_that_lacks_something_says_what_and_not_how_to_start_one(mesh: FakeMesh, logged_in: Cli) -> None:
    metadata, unavailable = {"dependency": "database"}, grpc.StatusCode.UNAVAILABLE
    mesh.fault("WhoAmI", unavailable, "DEPENDENCY_UNAVAILABLE", metadata=metadata, times=9)
    result = await logged_in("whoami")
    assert "answer of database" in result.err
    assert "inferplane up" not in result.err


async def test_violations_are_named(mesh: FakeMesh, logged_in: Cli) -> None:
    mesh.fault("DeleteDeployment", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", violations=(("name", "odd"),))
    assert "  name: odd" in (await logged_in("undeploy", "digits")).err


async def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, logged_in: Cli) -> None:
    monkeypatch.delenv("INFERPLANE_DEBUG", raising=False)
    monkeypatch.setattr("inferplane.client.auth.AuthClient.whoami", None)
    monkeypatch.setattr("inferplane.cli.auth.short", None)
    result = await logged_in("whoami")
    assert result.code == 1
    assert "unexpected TypeError" in result.err
    assert "Traceback" not in result.err


async def test_a_wrong_option_is_a_usage_error(cli: Cli) -> None:
    plain, as_json = await cli("whoami", "--nope"), await cli("whoami", "--nope", "--json")
    assert (plain.code, as_json.code, as_json.error["status"]) == (2, 2, "USAGE")
    assert "--nope" in plain.err


async def test_a_mistyped_command_is_a_usage_error(cli: Cli) -> None:
    result = await cli("modle")
    assert result.code == 2
    assert "Did you mean 'model'" in result.err


@pytest.mark.parametrize("name", ["_x", "a b", ""])
async def test_malformed_names_are_invalid_input(cli: Cli, name: str) -> None:
    result = await cli("undeploy", "--json", "--", name)
    assert (result.code, result.error["reason"]) == (3, "INVALID_FIELD")
