"""Roles are fixed sets of permissions."""

from collections.abc import Mapping

from inferplane.common.v1.access_pb2 import Permission

__all__ = ["ROLE_PERMISSIONS"]

_READ_MODELS = frozenset({Permission.PERMISSION_MODELS_READ})
_READ_DEPLOYMENTS = frozenset({Permission.PERMISSION_DEPLOYMENTS_READ})
_READ_REPORTS = frozenset({Permission.PERMISSION_REPORTS_READ})
_VIEW = _READ_MODELS | _READ_DEPLOYMENTS | _READ_REPORTS

ROLE_PERMISSIONS: Mapping[str, frozenset[Permission.ValueType]] = {
    "admin": frozenset(Permission.values()) - {Permission.PERMISSION_UNSPECIFIED},
    "publisher": _VIEW | {Permission.PERMISSION_MODELS_WRITE, Permission.PERMISSION_MODELS_DOWNLOAD},
    "approver": _VIEW | {Permission.PERMISSION_ALIASES_WRITE, Permission.PERMISSION_MODELS_DOWNLOAD},
    "deployer": _VIEW | {Permission.PERMISSION_DEPLOYMENTS_WRITE},
    "caller": _READ_DEPLOYMENTS | {Permission.PERMISSION_PREDICT, Permission.PERMISSION_FEEDBACK_WRITE},
    "auditor": _VIEW | {Permission.PERMISSION_IDENTITIES_READ},
    "viewer": _VIEW,
}
