"""Makes calls that are nothing but headers, by one connection, from a process of its own.

Usage: python -m tests.support.headers ADDRESS RATE ENTRIES SECONDS [--reset]; prints how many calls were made. RATE is
calls a second; each has ENTRIES headers beside the usual, a byte each on the wire, and given up at once with --reset.
"""

import socket
import sys
import threading
import time

import hpack

from tests.support.frames import PREFACE, SETTINGS, frame, swallow

END_HEADERS, END_STREAM = 4, 1
AT_ONCE = 50
ACKNOWLEDGED = frame(4, flags=1)
"""Of the settings; gRPC refuses all calls after the first 1,000 to who does not say so."""


def main() -> None:
    address, rate, entries, seconds = sys.argv[1], *map(float, sys.argv[2:5])
    reset = "--reset" in sys.argv
    host, _, port = address.rpartition(":")
    usual = [(":method", "POST"), (":scheme", "http"), (":path", "/no.such.Service/Method"), (":authority", host)]
    headers = [*usual, ("content-type", "application/grpc"), ("te", "trailers"), *[("a", "")] * int(entries)]
    made, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        encoder = hpack.Encoder()
        blocks = [encoder.encode(headers), encoder.encode(headers)]
        began, of_connection = time.monotonic(), 0
        try:
            with socket.create_connection((host, int(port))) as connection:
                threading.Thread(target=swallow, args=(connection,), daemon=True).start()
                connection.settimeout(seconds)
                connection.sendall(PREFACE + SETTINGS + ACKNOWLEDGED)
                while time.monotonic() < end:
                    burst = b""
                    for _ in range(AT_ONCE):
                        stream = 2 * of_connection + 1
                        flags = END_HEADERS | (0 if reset else END_STREAM)
                        burst += frame(1, blocks[min(of_connection, 1)], stream, flags)
                        if reset:
                            burst += frame(3, (8).to_bytes(4, "big"), stream)
                        of_connection += 1
                    connection.sendall(burst)
                    made += AT_ONCE
                    time.sleep(max(0.0, began + of_connection / rate - time.monotonic()))
        except OSError:
            continue
    print(made)


if __name__ == "__main__":
    main()
