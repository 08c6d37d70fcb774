"""The commands that come with the server: `up`, `serve`, `db` and `doctor`."""

import os

# gRPC reads it when it is first imported. Children are spawned and never forked, so its fork handlers have nothing
# to do, and would say so on standard error for each child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
