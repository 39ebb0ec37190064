"""Whose address a request comes from: the socket's peer, or whom trusted proxies name in X-Forwarded-For.

Each proxy adds on the right whom it was called by, so only what trusted ones wrote can be believed: from the right, the
first address that is no trusted proxy's. What a client itself put there stands further left, and is never reached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

UNIX = "unix"
"""The address of who calls by a Unix socket; where proxies are trusted, such a one is."""

MAX_HOPS = 20
"""As many addresses of X-Forwarded-For are looked at."""

ADDRESSES_REMEMBERED = 10_000

_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?\Z|([0-9.]+):\d+\Z")


class Peers:
    """Finds addresses. Single thread only. `_plain` remembers what peers' addresses are; it is emptied when full."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        """`trusted` are the networks of proxies that may say whom they speak for."""
        self._trusted = trusted
        self._plain: dict[str, tuple[str, bool]] = {}

    def address(self, peer: str, forwarded: str | None) -> str:
        """Who calls, given the socket's peer and the value of X-Forwarded-For."""
        found, believed = self._look_at(peer)
        if not believed or not forwarded:
            return found
        for hop in reversed(forwarded.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            try:
                address = _read(hop)
            except ValueError:
                return found  # a trusted proxy wrote no address: it is the last one that is known
            found = str(address)
            if not self._trusts(address):
                return found
        return found

    def is_proxy(self, peer: str) -> bool:
        """True when a peer speaks for others."""
        return self._look_at(peer)[1]

    def _look_at(self, peer: str) -> tuple[str, bool]:
        known = self._plain.get(peer)
        if known is None:
            try:
                address = _read(peer)
                known = str(address), self._trusts(address)
            except ValueError:
                known = UNIX, bool(self._trusted)
            if len(self._plain) >= ADDRESSES_REMEMBERED:
                self._plain.clear()
            self._plain[peer] = known
        return known

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def block_of(address: str) -> str:
    """What is limited as one: an IPv4 address, or the 64 bits of IPv6 within which whoever has one has all."""
    if ":" not in address:
        return address
    return str(IPv6Network((int(IPv6Address(address)) >> 64 << 64, 64)))


def _read(text: str) -> IPv4Address | IPv6Address:
    """An address, with or without a port and a zone; of an IPv4 address in IPv6, the former. Raises ValueError."""
    text = text.strip().strip('"')
    if match := _PORT.match(text):
        text = match[1] or match[2]
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
