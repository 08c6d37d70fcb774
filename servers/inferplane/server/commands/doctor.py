"""`inferplane doctor`: the effective settings, and whether each dependency is fit."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated

import asyncpg
import grpc
import typer
from pydantic import SecretStr
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url

from inferplane.server.commands.failures import reported
from inferplane.server.commands.terminal import console
from inferplane.server.embedded.postgres import EmbeddedPostgresError, find_binaries
from inferplane.server.embedded.triton_wheel import EmbeddedTritonError, find_wheel
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.triton_link import TritonLink, said
from inferplane.server.keys import MasterKey
from inferplane.server.settings import Settings
from inferplane.server.settings_sources import load_settings
from inferplane.server.storage.database import asyncpg_dsn
from inferplane.server.storage.schema import SchemaVersionError, check_version

__all__ = ["doctor"]

MINIMUM_POSTGRES = 150000
EMBEDDED = "embedded, started by `inferplane up`"
Finding = tuple[str, bool, str]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Print the effective settings, secrets masked, and check each dependency. Exits with 1 if one is unfit."""
    with reported():
        settings = load_settings()
        findings = asyncio.run(examine(settings))
    shown = {name: _shown(getattr(settings, name)) for name in type(settings).model_fields}
    if as_json:
        checks = [{"check": name, "ok": ok, "detail": detail} for name, ok, detail in findings]
        sys.stdout.write(json.dumps({"settings": shown, "checks": checks}, indent=2) + "\n")
    else:
        _print(shown, findings)
    if not all(ok for _, ok, _ in findings):
        raise typer.Exit(1)


async def examine(settings: Settings) -> list[Finding]:
    """Each check with its outcome and what to do about it."""
    checks: dict[str, Callable[[Settings], Awaitable[tuple[bool, str]]]] = {
        "python": _python,
        "data directory": _data_dir,
        "postgres": _postgres,
        "object store": _object_store,
        "triton": _triton,
        "keys": _keys,
    }
    return [(name, *(await _outcome(check(settings)))) for name, check in checks.items()]


async def _outcome(check: Awaitable[tuple[bool, str]]) -> tuple[bool, str]:
    """What a check finds; one that cannot be made is unfit, and the others are made all the same."""
    try:
        return await check
    except (EmbeddedPostgresError, EmbeddedTritonError, ValueError, OSError) as error:
        return False, str(error) or type(error).__name__
    except Exception as error:  # noqa: BLE001 - whatever it is; its text may hold a password
        return False, f"it cannot be looked at: {type(error).__name__}"


async def _python(_settings: Settings) -> tuple[bool, str]:
    version = sys.version_info
    return (3, 11) <= version < (3, 13), f"{version.major}.{version.minor}.{version.micro}; 3.11 and 3.12 are supported"


async def _data_dir(settings: Settings) -> tuple[bool, str]:
    path = settings.data_dir.resolve()
    if not path.exists():
        return True, f"{path} does not exist yet; `inferplane up` makes it"
    mode = path.stat().st_mode & 0o077
    return mode == 0, f"{path}" + (f" is open to others: chmod 700 {path}" if mode else "")


async def _postgres(settings: Settings) -> tuple[bool, str]:
    if settings.database_url is None:
        find_binaries()
        return True, EMBEDDED
    url = make_url(settings.database_url.get_secret_value())
    try:
        connection = await asyncpg.connect(asyncpg_dsn(url), timeout=5)
        number = int(await connection.fetchval("SHOW server_version_num"))
        await connection.close()
        await check_version(url)
    except SchemaVersionError as error:
        return False, str(error)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return False, f"{url.render_as_string(hide_password=True)}: {error}"
    return number >= MINIMUM_POSTGRES, f"server {number // 10000}, schema up to date; 15 or later is supported"


async def _object_store(settings: Settings) -> tuple[bool, str]:
    if settings.object_store_url is None:
        return True, "unset: model bytes lie in the data directory"
    # Imported here: `doctor` is part of a command that shall start quickly.
    from inferplane.server.artifact.object_chunk_store import ObjectChunkStore

    try:
        async with asyncio.timeout(5):
            await ObjectChunkStore.from_url(settings.object_store_url).check(writes=True)
    except InferplaneError as error:
        return False, f"{settings.object_store_url}: {error.metadata.get('detail', 'it does not answer')}"
    except TimeoutError:
        return False, f"{settings.object_store_url} does not answer"
    return True, f"{settings.object_store_url} answers"


async def _triton(settings: Settings) -> tuple[bool, str]:
    if settings.triton_endpoint is None:
        find_wheel()
        return True, EMBEDDED
    secret = settings.triton_header_value.get_secret_value()
    header = (settings.triton_header_name, secret) if settings.triton_header_name else None
    link = TritonLink(settings.triton_endpoint, header, settings.max_tensor_message_size)
    try:
        if not await link.live():
            return False, f"{settings.triton_endpoint} does not answer as ready"
        problem = await link.control_problem()
    except grpc.aio.AioRpcError as error:
        return False, f"{settings.triton_endpoint} went away: {said(error.details() or '')}"
    finally:
        await link.close()
    return not problem, f"{settings.triton_endpoint} " + (f"is live, but: {problem}" if problem else "is ready")


async def _keys(settings: Settings) -> tuple[bool, str]:
    path = settings.master_key_path
    if not path.exists():
        return True, f"{path} does not exist yet; `inferplane up` makes it, `serve` needs it"
    if path.stat().st_mode & 0o077:
        return False, f"{path} can be read by others: chmod 600 {path}"
    MasterKey.load(path)
    return True, str(path)


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "set (hidden)" if value.get_secret_value() else ""
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items())
    return "" if value is None else str(value)


def _print(shown: dict[str, str], findings: list[Finding]) -> None:
    settings = Table(title="Settings", title_justify="left")
    settings.add_column("name")
    settings.add_column("value", overflow="fold")
    for name, value in shown.items():
        settings.add_row(name, value)
    checks = Table(title="Checks", title_justify="left")
    for column in ("check", "", "detail"):
        checks.add_column(column, overflow="fold")
    for name, ok, detail in findings:
        checks.add_row(name, Text("ok", "green") if ok else Text("unfit", "red"), detail)
    console().print(settings, checks)
