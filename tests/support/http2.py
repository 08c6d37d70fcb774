"""A client that speaks HTTP/2 frame by frame: it can do what gRPC's own clients never would."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes

__all__ = ["RawConnection", "raw_connection"]

Headers = Sequence[tuple[str, str]]


class RawConnection:
    """One connection. Bytes sent count per stream; what the server answers is kept as its headers and as resets."""

    reads_answers = True

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._changed = asyncio.Event()
        self.sent: dict[int, int] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self._unread: Counter[int] = Counter()
        self.closed = asyncio.Event()

    async def begin(self, window: int | None) -> None:
        """Say hello."""
        if window is not None:
            self._http2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
            self._http2.local_settings.acknowledge()
        self._http2.initiate_connection()
        await self._flush()

    @property
    def most_streams(self) -> int:
        """How many streams at once the server has said that it takes; very many before it has said so."""
        return self._http2.remote_settings.max_concurrent_streams

    def ignore_most_streams(self) -> None:
        """Open as many as we like from now on."""
        self._http2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1 << 31
        self._http2.remote_settings.acknowledge()

    async def open(self, path: str, headers: Headers = ()) -> int:
        """Send a call's headers; the stream's number."""
        stream = self._http2.get_next_available_stream_id()
        usual = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", self._host),
            ("content-type", "application/grpc"), ("te", "trailers"),
        ]  # fmt: skip
        self._http2.send_headers(stream, [*usual, *headers])
        self.sent[stream] = 0
        await self._flush()
        return stream

    async def send(self, stream: int, data: bytes, *, last: bool = False) -> bool:
        """Send as much of `data` as the server lets us; whether all of it went before the stream ended. `last` ends
        our side of the stream with it."""
        view = memoryview(data)
        while view and stream not in self.ended:
            try:
                room = min(
                    self._http2.local_flow_control_window(stream), self._http2.max_outbound_frame_size, len(view)
                )
                if room > 0:
                    self._http2.send_data(stream, bytes(view[:room]))
                    self.sent[stream] += room
                    view = view[room:]
                    await self._flush()
                    continue
            except (h2.exceptions.ProtocolError, h2.exceptions.StreamClosedError):
                return False
            self._changed.clear()
            await self._changed.wait()
        if last and not view and stream not in self.ended:
            self._http2.end_stream(stream)
            await self._flush()
        return not view

    async def reset(self, stream: int) -> None:
        """Give the call up."""
        self._http2.reset_stream(stream)
        await self._flush()

    async def catch_up(self) -> None:
        """Read from now on, what was left unread too."""
        self.reads_answers = True
        for stream, unread in [*self._unread.items()]:
            if stream not in self.ended:
                self._http2.acknowledge_received_data(unread, stream)
        self._unread.clear()
        await self._flush()

    async def receive(self) -> None:
        """Take in what the server says, until it hangs up."""
        while data := await self._read():
            for event in self._http2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    self.trailers.setdefault(event.stream_id, {}).update(
                        {str(name): str(value) for name, value in event.headers}
                    )
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self.ended.add(event.stream_id)
                elif isinstance(event, h2.events.DataReceived):
                    if self.reads_answers:
                        self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    else:
                        self._unread[event.stream_id] += event.flow_controlled_length
            self._changed.set()
            await self._flush()
        self.closed.set()
        self._changed.set()

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(1 << 16)
        except ConnectionError:
            return b""

    async def _flush(self) -> None:
        self._writer.write(self._http2.data_to_send())
        await self._writer.drain()


@asynccontextmanager
async def raw_connection(
    address: str, connected: socket.socket | None = None, *, window: int | None = None
) -> AsyncIterator[RawConnection]:
    """Connect to `host:port`, or speak by a socket that is `connected` to it. The server may answer each call with so
    many bytes as the `window` has, HTTP/2's usual 64 KiB if it is not given, until these are read."""
    host, _, port = address.rpartition(":")
    if connected is None:
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    else:
        reader, writer = await asyncio.open_connection(sock=connected)
    connection = RawConnection(reader, writer, host)
    receiving = asyncio.create_task(connection.receive())
    try:
        await connection.begin(window)
        yield connection
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        writer.close()
