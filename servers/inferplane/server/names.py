"""Resource names (AIP-122) and the patterns of their segments: the one place that knows them."""

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator

from inferplane.server.limits import MAX_CLIENT_REQUEST_ID

__all__ = [
    "ALIAS", "DEPLOYMENT", "GRANT", "MODEL", "SESSION", "UPLOAD", "USER", "VERSION", "WORKLOAD",
    "AliasName", "AliasRef", "ClientRequestId", "DeploymentId", "DeploymentRef", "Digest", "GrantRef", "ModelId",
    "ModelRef", "ResourcePattern", "Scope", "SubjectName", "UploadName", "UploadRef", "UserId", "VersionName",
    "VersionOrAliasRef", "VersionRef", "client_request_id", "deployment_id", "digest", "governed_name", "version_name",
]  # fmt: skip

MODEL_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
USER_ID = r"[a-z0-9][a-z0-9._@-]{0,63}"
UUID_TEXT = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
SCOPE = r"[A-Za-z0-9._*?-]{1,128}"
DIGEST_TEXT = r"sha256:[0-9a-f]{64}"
SEGMENTS = {
    "model": MODEL_ID,
    "deployment": MODEL_ID,
    "version": r"[1-9][0-9]{0,8}",
    "alias": r"[A-Za-z][A-Za-z0-9._-]{0,63}",
    "user": USER_ID,
    "grant": UUID_TEXT,
    "session": UUID_TEXT,
    "upload": UUID_TEXT,
    "workload": r"[a-z]+",
}


class ResourcePattern:
    """A resource name's shape, such as `models/{model}/versions/{version}`."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.fields = re.findall(r"{(\w+)}", template)
        self._regex = re.compile(
            re.sub(
                r"{(\w+)}",
                lambda m: f"(?P<{m[1]}>{SEGMENTS[m[1]]})",
                re.escape(template).replace(r"\{", "{").replace(r"\}", "}"),
            )
        )

    def parse(self, name: str) -> tuple[str, ...]:
        """The variable segments of `name`, in order; ValueError if it has another shape."""
        match = self._regex.fullmatch(name)
        if match is None:
            raise ValueError(f"must have the form {self.template}" + self._hint())
        return match.groups()

    def _hint(self) -> str:
        return ", where " + " and ".join(f"{field} matches {SEGMENTS[field]}" for field in self.fields)

    def format(self, *segments: object) -> str:
        """The resource name with these variable segments."""
        return self.template.format(**dict(zip(self.fields, segments, strict=True)))


MODEL = ResourcePattern("models/{model}")
VERSION = ResourcePattern("models/{model}/versions/{version}")
ALIAS = ResourcePattern("models/{model}/aliases/{alias}")
UPLOAD = ResourcePattern("models/{model}/uploads/{upload}")
DEPLOYMENT = ResourcePattern("deployments/{deployment}")
USER = ResourcePattern("users/{user}")
GRANT = ResourcePattern("grants/{grant}")
SESSION = ResourcePattern("sessions/{session}")
WORKLOAD = ResourcePattern("workloads/{workload}")


class VersionName(NamedTuple):
    """A model's version."""

    model: str
    version: int


class AliasName(NamedTuple):
    """A model's alias."""

    model: str
    alias: str


class UploadName(NamedTuple):
    """A model's upload; `upload` is a UUID's text."""

    model: str
    upload: str


def _matching(pattern: str) -> AfterValidator:
    regex = re.compile(pattern)

    def check(value: str) -> str:
        if regex.fullmatch(value) is None:
            raise ValueError(f"must match {pattern}")
        return value

    return AfterValidator(check)


def deployment_id(name: str) -> str:
    """The id in `deployments/{deployment}`; ValueError if the name has another shape."""
    return DEPLOYMENT.parse(name)[0]


def version_name(name: str) -> VersionName:
    """What `models/{model}/versions/{version}` names; ValueError if the name has another shape."""
    model, version = VERSION.parse(name)
    return VersionName(model, int(version))


def _version_or_alias(name: str) -> VersionName | AliasName:
    for pattern in (VERSION, ALIAS):
        try:
            model, segment = pattern.parse(name)
        except ValueError:
            continue
        return VersionName(model, int(segment)) if pattern is VERSION else AliasName(model, segment)
    raise ValueError(f"must have the form {VERSION.template} or {ALIAS.template}")


def client_request_id(text: str) -> str:
    """`text` where a client may call its request so; ValueError if it is too long to be recorded, in bytes."""
    if len(text.encode()) > MAX_CLIENT_REQUEST_ID or "\0" in text:
        raise ValueError(f"must be at most {MAX_CLIENT_REQUEST_ID} bytes, without NUL")
    return text


def digest(text: str) -> str:
    """`text` where it is a digest of ours; ValueError if it is not."""
    if re.fullmatch(DIGEST_TEXT, text) is None:
        raise ValueError("must be sha256: and 64 lowercase hexadecimal digits")
    return text


def _subject(name: str) -> str:
    USER.parse(name)
    return name


ModelId = Annotated[str, _matching(MODEL_ID)]
DeploymentId = Annotated[str, _matching(MODEL_ID)]
UserId = Annotated[str, _matching(USER_ID)]
Scope = Annotated[str, _matching(SCOPE)]
SubjectName = Annotated[str, AfterValidator(_subject)]
ModelRef = Annotated[str, AfterValidator(lambda name: MODEL.parse(name)[0])]
DeploymentRef = Annotated[str, AfterValidator(deployment_id)]
GrantRef = Annotated[str, AfterValidator(lambda name: GRANT.parse(name)[0])]
VersionRef = Annotated[VersionName, BeforeValidator(version_name)]
AliasRef = Annotated[AliasName, BeforeValidator(lambda name: AliasName(*ALIAS.parse(name)))]
VersionOrAliasRef = Annotated[VersionName | AliasName, BeforeValidator(_version_or_alias)]
UploadRef = Annotated[UploadName, BeforeValidator(lambda name: UploadName(*UPLOAD.parse(name)))]
ClientRequestId = Annotated[str, AfterValidator(client_request_id)]
Digest = Annotated[str, AfterValidator(digest)]


def governed_name(value: str) -> str:
    """The model or deployment that a name speaks of: `digits` for `models/digits/versions/3` and for `digits`.

    Raises ValueError where that is not a name that a grant could cover.
    """
    collection, _, rest = value.partition("/")
    name = rest.split("/", 1)[0] if collection in ("models", "deployments") and rest else value
    if re.fullmatch(MODEL_ID, name) is None:
        raise ValueError(f"must be or contain a name that matches {MODEL_ID}")
    return name
