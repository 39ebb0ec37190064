"""Which addresses of the internet a stranger's URL may not lead to, and what a host in a URL says.

The table is ours: `ipaddress.is_private` and `is_global` follow the registry as the running Python knows it, and have
been wrong (CVE-2024-4032). It refuses what is special by the IANA registries, and what carries another address inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import idna

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

REFUSED_V4: dict[IPv4Network, str] = {
    IPv4Network(network): what
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by carriers"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local, with the metadata of clouds"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved, and broadcast"),
    )
}
MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")
"""These two are judged by the IPv4 address in their last 32 bits: behind NAT64 every IPv4 receiver resolves to one."""

REFUSED_V6: dict[IPv6Network, str] = {
    IPv6Network(network): what
    for network, what in (
        ("::/8", "unspecified, loopback and translations of IPv4"),
        ("100::/64", "discard"),
        ("2001::/32", "Teredo"),
        ("2001:20::/28", "ORCHID"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fd00:ec2::254/128", "the metadata of a cloud"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
}

LOOPBACK = ("127.0.0.1", "::1")
"""What `localhost` and all below it mean (RFC 6761); no resolver is asked."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label like this makes a host an IPv4 address to `inet_aton`, however it is spelt."""


def parse(text: str) -> Address:
    """An address as a resolver or a URL gives it; one that IPv6 maps becomes the IPv4 address. Raises ValueError."""
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        raise AddressValueError("an address with a scope means nothing elsewhere")
    return last_32_bits(address) if address in MAPPED else address


def last_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def refusal(address: Address) -> tuple[Network, str] | None:
    """The network that makes an address forbidden, and what it is; None for one of the open internet."""
    if isinstance(address, IPv6Address):
        if address in MAPPED or address in NAT64:
            return refusal(last_32_bits(address))
        return next(((network, what) for network, what in REFUSED_V6.items() if address in network), None)
    return next(((network, what) for network, what in REFUSED_V4.items() if address in network), None)


def contains(networks: Iterable[Network], address: Address) -> bool:
    """Whether one of the networks holds it; an address behind NAT64 is also held by a network of its IPv4 address."""
    if any(address.version == network.version and address in network for network in networks):
        return True
    return isinstance(address, IPv6Address) and address in NAT64 and contains(networks, last_32_bits(address))


def host_name(text: str) -> str:
    """A host of a URL in the one form that is used from here on: lower case, punycode, no dot at its end.

    Raises ValueError, with a sentence, for what is no name and no address in its usual form.
    """
    host = text.lower()
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError("The host is not a name that DNS can have; check its spelling.") from None
    host = host.removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise ValueError("The host is an unusual spelling of an address; write four decimal numbers.") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("The host is not a name that DNS can have; check its spelling.")
    return host
