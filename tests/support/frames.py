"""Sends HTTP/2 frames that no token is needed for, from a process of its own, as fast as they are taken.

Usage: python -m tests.support.frames ADDRESS KIND SECONDS; prints how many bytes went.
"""

import socket
import sys
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    """A frame (RFC 9113, section 4.1), of the whole connection where no stream is named."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


SETTINGS = frame(4)
FRAMES = {
    "pings": frame(6, bytes(8)),
    "settings": SETTINGS,
    "window updates": frame(8, (1).to_bytes(4, "big")),
}
BURST = 1 << 20


def swallow(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 20):
            pass
    except OSError:
        pass


def main() -> None:
    address, kind, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    end, sent = time.monotonic() + seconds, 0
    host, _, port = address.rpartition(":")
    burst = FRAMES[kind.removeprefix("a burst of ")]
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, int(port))) as connection:
                threading.Thread(target=swallow, args=(connection,), daemon=True).start()
                connection.settimeout(max(0.1, end - time.monotonic()))
                connection.sendall(PREFACE + SETTINGS)
                connection.sendall(burst * (BURST // len(burst)))
                sent += BURST
                if kind.startswith("a burst"):
                    # Held open: what it has sent is worked off.
                    time.sleep(max(0.0, end - time.monotonic()))
                while time.monotonic() < end:
                    connection.sendall(burst * 1000)
                    sent += len(burst) * 1000
        except OSError:
            continue
    print(sent)


if __name__ == "__main__":
    main()
