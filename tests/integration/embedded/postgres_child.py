"""Runs an EmbeddedPostgres until it is killed: `python postgres_child.py DATA_DIR ROWS`.

Prints one line of JSON once the rows are committed: the postmaster's pid and its URL.
"""

import asyncio
import json
import sys
from pathlib import Path

import asyncpg

from inferplane.server.embedded.postgres import EmbeddedPostgres


async def main() -> None:
    postgres = EmbeddedPostgres(Path(sys.argv[1]))
    await postgres.start()
    connection = await asyncpg.connect(postgres.owner_url.replace("+asyncpg", ""))
    await connection.execute("CREATE TABLE kept AS SELECT generate_series(1, $1::int) AS n", int(sys.argv[2]))
    print(json.dumps({"pid": postgres.pid, "url": postgres.owner_url}), flush=True)
    await postgres.wait()


asyncio.run(main())
