"""Makes a database ready for the services: migrations, keys and the first administrator.

`inferplane up` runs it as a child, `python -m inferplane.server.processes.prepare`, and passes what it needs on
standard input: the libraries that this takes would otherwise stay in the memory of a process that runs for months.
"""

import asyncio
import json
import sys

from sqlalchemy import make_url

from inferplane.server.auth.first_admin import create_first_admin
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.workloads import ensure_workload_keys
from inferplane.server.keys import MasterKey
from inferplane.server.rpc.errors import public_message
from inferplane.server.settings import Settings
from inferplane.server.storage.migrate import ServicesConnectedError, migrate


async def prepare(settings: Settings, admin: str, password: str) -> None:
    """Migrate as the owner, make the keys that are missing, and an administrator if there is none."""
    if settings.database_url is None:
        raise ValueError("no database")
    await migrate(make_url(settings.database_url.get_secret_value()))
    MasterKey.load_or_create(settings.master_key_path)
    ensure_workload_keys(settings.keys_dir)
    await create_first_admin(settings, admin, password)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    try:
        asyncio.run(prepare(Settings.model_validate_json(given["settings"]), given["admin"], given["password"]))
    except InferplaneError as error:
        sys.exit(f"error: the database could not be prepared: {public_message(error)}")
    except ServicesConnectedError as error:
        sys.exit(f"error: the database could not be prepared: {error}")
    except Exception as error:  # noqa: BLE001 - for people, who see it in the terminal
        sys.exit(f"error: the database could not be prepared: {type(error).__name__}: {error}")
