"""Where calls come from, as far as an address tells."""

from ipaddress import IPv6Address, ip_network
from urllib.parse import unquote

__all__ = ["address_of"]

_PREFIX = 64


def address_of(peer: str) -> str:
    """Who sends from there, as far as an address tells: one IPv4 address, or the /64 that one IPv6 host has."""
    scheme, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0]
    if scheme != "ipv6":
        return f"{scheme}:{host}"
    try:
        address = IPv6Address(host.strip("[]").partition("%")[0])
    except ValueError:
        return f"{scheme}:{host}"
    return str(ip_network((address, _PREFIX), strict=False))
