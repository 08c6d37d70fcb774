"""The typed async client of Inferplane; `inferplane.client.sync` is the same without async."""

from inferplane.client import errors
from inferplane.client.artifact import ArtifactClient
from inferplane.client.auth import AuthClient
from inferplane.client.calls import Backoff
from inferplane.client.endpoints import Endpoints, ReadyFile
from inferplane.client.errors import DeploymentFailed, DigestMismatch, InferplaneClientError
from inferplane.client.inference import InferenceClient, Prediction
from inferplane.client.plane import Credentials, Inferplane, Password
from inferplane.client.reporting import ReportingClient
from inferplane.client.tokens import FileStore, MemoryStore, Tokens, TokenStore

__all__ = [
    "ArtifactClient",
    "AuthClient",
    "Backoff",
    "Credentials",
    "DeploymentFailed",
    "DigestMismatch",
    "Endpoints",
    "FileStore",
    "InferenceClient",
    "Inferplane",
    "InferplaneClientError",
    "MemoryStore",
    "Password",
    "Prediction",
    "ReadyFile",
    "ReportingClient",
    "TokenStore",
    "Tokens",
    "errors",
]
