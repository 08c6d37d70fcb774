"""Ports that several worker processes share."""

import socket

__all__ = ["PortInUseError", "ReservedPort", "port_in_use"]


class PortInUseError(Exception):
    """Somebody else listens there; stop them or choose another port."""


def port_in_use(host: str, port: int, setting: str, error: OSError) -> PortInUseError:
    """Nothing can listen on `port` of `host`, which `setting` may change."""
    return PortInUseError(f"cannot listen on {host}:{port}: {error.strerror}; {setting} chooses another")


class ReservedPort:
    """Holds a port for workers that share it by SO_REUSEPORT.

    The socket is bound and never listens, so it gets no connections; while it is held, nobody without
    SO_REUSEPORT can take the port between two workers. Port 0 finds a free one.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            # Without SO_REUSEPORT first: two installations on one port would otherwise share its calls.
            with socket.socket(_family(host)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            self._socket = socket.socket(_family(host))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((host, port))
        except OSError as error:
            raise port_in_use(host, port, "INFERPLANE_BASE_PORT, or `up --base-port 0`,", error) from error
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
