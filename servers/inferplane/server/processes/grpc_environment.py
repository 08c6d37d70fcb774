"""How gRPC's own library runs in workers. It reads its environment once, when it is first imported."""

__all__ = ["GRPC_ENVIRONMENT"]

GRPC_ENVIRONMENT = {
    # It writes a line for a stranger's call that it refuses; ours are bounded.
    "GRPC_VERBOSITY": "NONE",
    # The connections to Triton and to other services are served by the thread that waits for calls, without a hand over
    # between threads for each. Not those of callers: one of them could keep that thread busy (decision 0034).
    "GRPC_EXPERIMENTS": "-event_engine_client",
}
"""Variables of a worker's environment, where an operator has not set them otherwise."""
