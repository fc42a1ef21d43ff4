"""The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): who the client really is.

A proxy in front of us says it before the first octet of the connection. It is believed only from
networks that were named, and a header that is not to the letter closes the connection.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Callable, Iterable, Optional, Tuple, Union

from .envelope import Peer

__all__ = ["Networks", "check_networks", "is_in", "read_header"]

Networks = Tuple[Union[ipaddress.IPv4Network, ipaddress.IPv6Network], ...]

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST_V1 = 107
LONGEST_V2 = 4_096  # with its TLVs; the addresses alone are 216 at most

_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|(TCP[46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) "
    rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
)
_SIZES = {0x11: 4, 0x21: 16}  # TCP over IPv4, TCP over IPv6: octets of an address
_NO_ADDRESS = {0x00, 0x31}  # AF_UNSPEC, and a Unix socket: not an address to go by
LOCAL, PROXY = 0x20, 0x21


def check_networks(value: Iterable[str]) -> Networks:
    """Read networks such as ``"10.0.0.0/8"``; ``ValueError`` for what is none."""
    return tuple(ipaddress.ip_network(network) for network in value)


def is_in(address: str, networks: Networks) -> bool:
    """Tell whether an address is in one of the networks."""
    if not networks:
        return False
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False  # a Unix socket has none
    return any(ip in network for network in networks)


def read_header(read: Callable[[int], bytes]) -> Optional[Peer]:
    """Read the header with ``read(n)``, which gives exactly n octets, and give the client.

    ``None``: the connection is the proxy's own (a health check), or it does not know the client.
    Raises ``ValueError`` for a bad header.
    """
    head = read(len(SIGNATURE))
    if head == SIGNATURE:
        return _version_2(read)
    if not head.startswith(b"PROXY "):
        raise ValueError("no PROXY header")
    # Byte by byte: what follows the header is not ours to take.
    while not head.endswith(b"\n"):
        if len(head) >= LONGEST_V1:
            raise ValueError("PROXY header without an end")
        head += read(1)
    match = _V1.fullmatch(head)
    if match is None:
        raise ValueError("malformed PROXY header")
    if match[1] is None:
        return None
    version, ports = int(match[1][3:]), (int(match[4]), int(match[5]))
    source, destination = (ipaddress.ip_address(match[n].decode()) for n in (2, 3))
    if (source.version, destination.version) != (version, version) or max(ports) > 65535:
        raise ValueError("malformed PROXY header")
    return _peer(source, ports[0])


def _version_2(read: Callable[[int], bytes]) -> Optional[Peer]:
    command, kind, high, low = read(4)
    length = high << 8 | low
    if command not in (LOCAL, PROXY) or length > LONGEST_V2:
        raise ValueError("malformed PROXY header")
    content = read(length)
    if command == LOCAL or kind in _NO_ADDRESS:
        return None
    size = _SIZES.get(kind)
    if size is None:
        raise ValueError("PROXY header of another protocol than TCP")
    if length < 2 * size + 4:
        raise ValueError("PROXY header cut short")
    port = int.from_bytes(content[2 * size : 2 * size + 2], "big")
    return _peer(ipaddress.ip_address(content[:size]), port)


def _peer(address: Union[ipaddress.IPv4Address, ipaddress.IPv6Address], port: int) -> Peer:
    # An IPv4 client at a dual-stack listener of the proxy is an IPv4 client.
    return Peer(str(getattr(address, "ipv4_mapped", None) or address), port)
