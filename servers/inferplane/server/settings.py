"""All settings. `settings_sources` reads them, once, from the environment and an optional TOML file."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

__all__ = ["BASE_PORT", "METRICS_BASE_PORT", "TRITON_PORT", "ServiceName", "Settings", "address"]


def address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


BASE_PORT = 50051
METRICS_BASE_PORT = 9464
TRITON_PORT = 8001


class ServiceName(StrEnum):
    """The four services, in the order in which their default ports follow `base_port`."""

    AUTH = "auth"
    INFERENCE = "inference"
    ARTIFACT = "artifact"
    REPORTING = "reporting"


def _for_asyncpg(url: SecretStr) -> SecretStr:
    """URLs as everybody writes them name no driver, and SQLAlchemy would take one that is not here."""
    return SecretStr(re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", url.get_secret_value()))


DatabaseUrl = Annotated[SecretStr, AfterValidator(_for_asyncpg)]


class Settings(BaseModel):
    """Effective settings. Times are in seconds, sizes in bytes; port 0 means any free port."""

    model_config = ConfigDict(frozen=True)

    data_dir: Path = Field(Path(".inferplane"), description="Folder that holds all state of this machine.")
    listen: str = Field("127.0.0.1", description="Address that the services bind.")
    base_port: Port = Field(BASE_PORT, description="Port of the auth service; the others follow. 0: any free ports.")
    metrics_base_port: Port | None = Field(
        None, description="First port of /metrics, one per process. Unset: 9464, or any if base_port is not 50051."
    )
    triton_port: Port | None = Field(
        None, description="Port of the embedded Triton. Unset: 8001, or any if base_port is not 50051."
    )
    workers: int = Field(1, ge=1, le=64, description="Worker processes per service.")

    database_url: DatabaseUrl | None = Field(
        None, description="postgresql://… of the owner; unset: the embedded PostgreSQL."
    )
    service_database_urls: dict[ServiceName, DatabaseUrl] = Field(
        default_factory=dict,
        description="URLs of services that log in as their own role, instead of SET ROLE.",
    )
    database_pool_size: int = Field(4, ge=1, description="Connections per worker process; twice that when busy.")
    object_store_url: str | None = Field(
        None, description="s3://, gs:// or az:// URL for model bytes; unset: a folder of the data directory."
    )
    triton_endpoint: str | None = Field(None, description="host:port of Triton; unset: the embedded one.")
    triton_header_name: str = Field("", description="Metadata name that Triton's calls must carry, if any.")
    triton_header_value: SecretStr = Field(SecretStr(""), description="The value that goes with it.")
    endpoints: dict[ServiceName, str] = Field(
        default_factory=dict, description="host:port of each service, for calls between services."
    )

    master_key_file: Path | None = Field(
        None, description="32 random bytes from which storage keys are derived; unset: keys/master.key."
    )
    workload_keys_dir: Path | None = Field(
        None, description="Folder of <service>.jwk and workloads.jwks; unset: keys/ of the data directory."
    )

    access_token_lifetime: Seconds = Field(600, description="How long an access token is good.")
    session_lifetime: Seconds = Field(30 * 86400, description="How long a session lasts without a refresh.")
    policy_max_staleness: Seconds = Field(300, description="How long the data plane goes on without policy.")
    unary_deadline: Seconds = Field(30, description="Cap of a unary call that names no other.")
    stream_idle_limit: Seconds = Field(60, description="How long a stream may say nothing.")
    stream_minimum_rate: float = Field(
        64 << 10, ge=0, description="Bytes a second that an upload or a download must move."
    )
    drain_grace: Seconds = Field(20, description="How long accepted calls may take to finish on a stop.")
    max_connection_age: Seconds = Field(1800, description="When a client's connection, or a stream, is renewed.")
    max_connections: int = Field(2000, ge=1, description="Connections per worker process.")
    max_streams_per_connection: int = Field(1000, ge=1, description="Calls at once on one connection; more wait.")
    slow_body_budget: int = Field(
        512 << 20,
        ge=1 << 20,
        description="Bytes that a worker may grow by through what was sent and is not read yet.",
    )
    max_message_size: int = Field(
        4 << 20,
        ge=1 << 16,
        description="Largest message of uploads, prediction records and feedback; others of the control plane: 1 MiB.",
    )
    max_tensor_message_size: int = Field(
        32 << 20,
        ge=1 << 16,
        description="Largest message of predictions. gRPC copies one while all others wait: 64 MiB take 0.1 to 0.2 s.",
    )
    max_artifact_size: int = Field(1 << 31, ge=1, description="Largest model file.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level logged.")

    @property
    def keys_dir(self) -> Path:
        """Where this machine's keys lie."""
        return self.workload_keys_dir or self.data_dir / "keys"

    @property
    def master_key_path(self) -> Path:
        """Where the master key lies."""
        return self.master_key_file or self.data_dir / "keys" / "master.key"

    def beside(self, chosen: int | None, usual: int) -> int:
        """A port that goes with the services' own: `chosen`, else the usual one beside the usual services, else any."""
        if chosen is not None:
            return chosen
        return usual if self.base_port == BASE_PORT else 0

    def to_worker(self) -> str:
        """These settings as JSON with their secrets, for a worker's standard input and nothing else."""

        def reveal(value: object) -> str:
            return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

        return json.dumps(self.model_dump(), default=reveal)
