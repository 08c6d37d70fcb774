"""The names of things: what is valid, and how `NAME`, `NAME:VERSION` and `NAME@ALIAS` are read."""

import re
from dataclasses import dataclass

from inferplane.client.errors import InvalidArgument

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_USER = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_SCOPE = re.compile(r"[A-Za-z0-9._*?-]{1,128}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

ROLES = ("admin", "publisher", "approver", "deployer", "caller", "auditor", "viewer")


def invalid(field: str, description: str) -> InvalidArgument:
    """Make the error that the service would answer, without asking it."""
    return InvalidArgument(f"{field}: {description}", reason="INVALID_FIELD", violations=[(field, description)])


def _checked(pattern: re.Pattern[str], field: str, value: str, rule: str) -> str:
    if not pattern.fullmatch(value):
        raise invalid(field, f"{value!r} is not valid: {rule}")
    return value


def model_id(value: str, field: str = "model") -> str:
    """Check the id of a model or a deployment; raises InvalidArgument."""
    return _checked(_MODEL, field, value, "1 to 128 letters, digits, '.', '_' or '-', not '._-' first")


def alias_id(value: str) -> str:
    """Check the id of an alias; raises InvalidArgument."""
    return _checked(_ALIAS, "alias", value, "1 to 64 letters, digits, '.', '_' or '-', a letter first")


def user_id(value: str) -> str:
    """Check a username; raises InvalidArgument."""
    rule = "1 to 64 lower-case letters, digits, '.', '_', '@' or '-', a letter or digit first"
    return _checked(_USER, "user", value, rule)


def scope(value: str) -> str:
    """Check a glob of model names; raises InvalidArgument."""
    return _checked(_SCOPE, "scope", value, "1 to 128 letters, digits, '.', '_', '-', '*' or '?'")


def role(value: str) -> str:
    """Check the name of a role; raises InvalidArgument."""
    if value not in ROLES:
        raise invalid("role", f"{value!r} is none of {', '.join(ROLES)}")
    return value


def version_id(value: int | str) -> int:
    """Check the number of a version, which counts from 1; raises InvalidArgument."""
    return int(_checked(_VERSION, "version", str(value), "a whole number from 1"))


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model, and at most one of a version and an alias of it; neither means the newest version."""

    model: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Read `NAME`, `NAME:VERSION` or `NAME@ALIAS`; raises InvalidArgument."""
        name, colon, version = text.partition(":")
        if colon:
            return cls(model_id(name), version=version_id(version))
        name, at, alias = text.partition("@")
        return cls(model_id(name), alias=alias_id(alias)) if at else cls(model_id(name))

    @property
    def parent(self) -> str:
        """The model's resource name."""
        return f"models/{self.model}"

    @property
    def resource(self) -> str | None:
        """The resource name of the version or the alias; None where the newest version is meant."""
        if self.version is not None:
            return f"{self.parent}/versions/{self.version}"
        return None if self.alias is None else f"{self.parent}/aliases/{self.alias}"


def short(resource: str) -> str:
    """Take the collection off a resource name: `models/digits` becomes `digits`."""
    return resource.rpartition("/")[2]
