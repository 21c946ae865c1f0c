"""Who the client is when reverse proxies stand in between.

Only a proxy named in `server.trusted_proxies` is believed. Each proxy appends the address it was called from to X-Forwarded-For,
so the right-most address that is not one of ours is the client; everything left of it is what the client itself claims. The
headers Forwarded and X-Forwarded-Host are never read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from litestar.types import HTTPScope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# A request that carries one of these came through a proxy, ours or not.
FORWARDING_HEADERS = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"})


class Client(NamedTuple):
    """Where a request came from.

    Attributes:
        address: IP address, as text; empty for a peer without one (a Unix socket).
        is_secure: it reached us, or the trusted proxy in front, over TLS.
        is_local: a program on this machine called us directly, through no proxy.
    """

    address: str = ""
    is_secure: bool = False
    is_local: bool = False

    @property
    def cookie(self) -> str:
        """Name of the session cookie; browsers take `__Host-` over TLS only, and then from this very host only."""
        return "__Host-atlas" if self.is_secure else "atlas"

    def drop_session(self) -> str:
        """The Set-Cookie header that makes a browser forget its session."""
        return f"{self.cookie}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if self.is_secure else "")


def client_of(scope: HTTPScope, headers: Mapping[str, str], trusted: tuple[str, ...]) -> Client:
    """The client of a request; `headers` with repeated ones joined by commas."""
    name, is_secure = scope["client"][0] if scope["client"] else "", scope["scheme"] == "https"
    if FORWARDING_HEADERS.isdisjoint(headers):
        return _unforwarded(name, trusted, is_secure=is_secure)
    peer = _address(name)
    if peer is None or not _is_trusted(peer, trusted):
        return Client("" if peer is None else str(peer), is_secure)
    proto = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
    return Client(str(_behind(peer, headers.get("x-forwarded-for", ""), trusted)), proto == "https")


@lru_cache(maxsize=4096)
def _unforwarded(name: str, trusted: tuple[str, ...], *, is_secure: bool) -> Client:
    """Nobody says that they pass it on; a proxy of ours that does not say how it was called was not called securely."""
    peer = _address(name)
    if peer is None:
        return Client(is_secure=is_secure)
    return Client(str(peer)) if _is_trusted(peer, trusted) else Client(str(peer), is_secure, peer.is_loopback)


def _behind(peer: Address, forwarded: str, trusted: tuple[str, ...]) -> Address:
    """Walk from the nearest hop outwards; a hop that is no address ends the walk at the proxy that reported it."""
    for hop in reversed(forwarded.split(",")):
        if not _is_trusted(peer, trusted):
            break
        address = _address(hop)
        if address is None:
            break
        peer = address
    return peer


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    """An IP address, with or without a port; an IPv4 one in IPv6 clothes counts as IPv4."""
    name = text.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=4096)
def _is_trusted(address: Address, trusted: tuple[str, ...]) -> bool:
    return any(address in network for network in _networks(trusted))


@cache  # one entry per application
def _networks(trusted: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in trusted)
