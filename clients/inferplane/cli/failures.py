"""Errors on their way to a person or a program: text, hint, exit code."""

import json
import os
import sys
import traceback
from typing import Any

import typer

from inferplane.cli.exit_codes import ExitCode
from inferplane.cli.invocation import plain

_ROLES = {
    "MODELS_READ": "viewer",
    "MODELS_DOWNLOAD": "publisher",
    "MODELS_WRITE": "publisher",
    "ALIASES_WRITE": "approver",
    "DEPLOYMENTS_READ": "viewer",
    "DEPLOYMENTS_WRITE": "deployer",
    "PREDICT": "caller",
    "FEEDBACK_WRITE": "caller",
    "REPORTS_READ": "viewer",
    "IDENTITIES_READ": "auditor",
    "IDENTITIES_WRITE": "admin",
}
_EXIT_CODES = {
    "INVALID_ARGUMENT": ExitCode.INVALID_INPUT,
    "OUT_OF_RANGE": ExitCode.INVALID_INPUT,
    "UNAUTHENTICATED": ExitCode.NOT_AUTHENTICATED,
    "PERMISSION_DENIED": ExitCode.PERMISSION_DENIED,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "ALREADY_EXISTS": ExitCode.CONFLICT,
    "FAILED_PRECONDITION": ExitCode.CONFLICT,
    "ABORTED": ExitCode.CONFLICT,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": ExitCode.UNAVAILABLE,
    "DATA_LOSS": ExitCode.DATA_LOSS,
}
_EXIT_CODES_BY_REASON = {
    "PROFILE_MISSING": ExitCode.NOT_AUTHENTICATED,
    "ARTIFACT_TOO_LARGE": ExitCode.INVALID_INPUT,
    "MESSAGE_TOO_LARGE": ExitCode.INVALID_INPUT,
}
_HINTS_BY_REASON = {
    "LOGIN_FAILED": "check the username and the password",
    "REFRESH_TOKEN_REUSED": "run `inferplane login`; if nothing else uses your credentials, somebody copied them",
    "MODEL_NOT_FOUND": "`inferplane model list` shows the models that you may see",
    "MODEL_VERSION_NOT_FOUND": "`inferplane model show NAME` shows versions and aliases",
    "MODEL_ALIAS_NOT_FOUND": "`inferplane model show NAME` shows versions and aliases",
    "DEPLOYMENT_NOT_FOUND": "`inferplane deployment list` shows the deployments that you may see",
    "DEPLOYMENT_EXISTS": "choose another name with --name, or run `inferplane undeploy` first",
    "DEPLOYMENT_NOT_READY": "`inferplane deployment list` shows its state; try again when it is READY",
    "DEPLOYMENT_LOADING": "`inferplane deployment show NAME` says how it stands and what it waits for",
    "DEPLOYMENT_FAILED": "loading is tried again; `inferplane undeploy` gives it up",
    "DEPLOYMENT_SUPERSEDED": "somebody else deployed meanwhile; `inferplane deployment show NAME` says what serves",
    "LAST_ADMIN": "give somebody else the role admin on '*' first",
    "PREDICTION_NOT_FOUND": "records arrive within seconds; check the id and the deployment",
    "PREDICTION_AMBIGUOUS": "name the prediction by its own id",
    "PROFILE_MISSING": "run `inferplane login --ready-file FILE`",
    "READY_FILE_MISSING": "start a mesh with `inferplane up --ready-file FILE`",
}
_HINTS_BY_STATUS = {
    "UNAUTHENTICATED": "run `inferplane login`",
    "UNAVAILABLE": "is the mesh up? `inferplane up` starts one on this machine",
    "DEADLINE_EXCEEDED": "try again; the mesh may be busy",
    "INTERNAL": "the service's log has more under the request id",
}


def report(error: BaseException, *, as_json: bool) -> int:
    """Say on stderr what went wrong and what to do next; gives the exit code."""
    details = _details(error)
    code = details.pop("exit_code")
    if as_json:
        print(json.dumps({"error": {**details, "exit_code": int(code)}}), file=sys.stderr)
        return int(code)
    if details["status"] == "USAGE" and _show_usage(error):
        return int(code)
    print(plain(f"Error: {details['message']}"), file=sys.stderr)
    for field, description in details.get("violations", []):
        if details["message"] != f"{field}: {description}":
            print(plain(f"  {field}: {description}"), file=sys.stderr)
    for name in ("hint", "request_id"):
        if details.get(name):
            print(plain(f"{name.replace('_', ' ').capitalize()}: {details[name]}"), file=sys.stderr)
    if details["status"] == "UNEXPECTED" and os.environ.get("INFERPLANE_DEBUG"):
        traceback.print_exception(error)
    return int(code)


def _details(error: BaseException) -> dict[str, Any]:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return {"status": "CANCELLED", "message": "interrupted", "exit_code": ExitCode.INTERRUPTED}
    if isinstance(error, typer.TyperException):
        status = "USAGE" if error.exit_code == ExitCode.USAGE else "FAILED_PRECONDITION"
        return {"status": status, "message": error.format_message(), "exit_code": error.exit_code}
    from inferplane.client.errors import InferplaneClientError

    if isinstance(error, InferplaneClientError):
        return _client_error(error)
    if isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return {"status": "INVALID_ARGUMENT", "message": message, "exit_code": ExitCode.INVALID_INPUT}
    return {
        "status": "UNEXPECTED",
        "message": f"unexpected {type(error).__name__}: {error}",
        "hint": "set INFERPLANE_DEBUG=1 to see where it came from, and report it",
        "exit_code": ExitCode.UNEXPECTED,
    }


def _client_error(error: Any) -> dict[str, Any]:
    status = error.status.name
    fallback = _EXIT_CODES.get(status, ExitCode.UNEXPECTED)
    return {
        "status": status,
        "reason": error.reason,
        "message": error.message,
        "hint": _hint(error),
        "metadata": error.metadata,
        "violations": error.violations,
        "retry_after": error.retry_after,
        "request_id": error.request_id,
        "exit_code": _EXIT_CODES_BY_REASON.get(error.reason, fallback),
    }


def _hint(error: Any) -> str:
    if error.reason == "PERMISSION_DENIED":
        permission = error.metadata.get("permission", "").removeprefix("PERMISSION_")
        role, resource = _ROLES.get(permission, "ROLE"), error.metadata.get("resource", "NAME")
        scope = resource.partition("/")[2].partition("/")[0] or resource
        return f"ask an administrator to run: inferplane grant add {role} --to YOU --on '{scope}'"
    if error.reason == "DEPENDENCY_UNAVAILABLE":
        missing = error.metadata.get("dependency", "something that the mesh needs")
        return f"the mesh is up, but does not get an answer of {missing}: `inferplane doctor` on its machine says more"
    if error.reason == "DEPLOYMENT_FAILED" and (serves := error.metadata.get("serves")):
        _, model, _, version = serves.split("/")
        return f"loading is tried again; `inferplane deploy {model}:{version}` gives the replacement up"
    if error.retry_after is not None and error.status.name == "RESOURCE_EXHAUSTED":
        return f"wait {error.retry_after:g} s and try again"
    return _HINTS_BY_REASON.get(error.reason, _HINTS_BY_STATUS.get(error.status.name, ""))


def _show_usage(error: BaseException) -> bool:
    show = getattr(error, "show", None)
    if show is None:
        return False
    show(file=sys.stderr)
    return True
