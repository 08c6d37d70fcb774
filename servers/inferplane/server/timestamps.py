"""Times as messages."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["timestamp"]


def timestamp(when: datetime) -> Timestamp:
    """An aware datetime as a Timestamp."""
    message = Timestamp()
    message.FromDatetime(when)
    return message
