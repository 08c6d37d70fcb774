"""How gRPC's own library runs in workers. It reads its environment once, when it is first imported."""

__all__ = ["GRPC_ENVIRONMENT"]

GRPC_ENVIRONMENT = {
    # It writes a line for a stranger's call that it refuses; ours are bounded.
    "GRPC_VERBOSITY": "NONE",
    # Sockets are read and written by the thread that waits for calls, without a hand over between threads for each
    # (decision 0034).
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
}
"""Variables of a worker's environment, where an operator has not set them otherwise."""
