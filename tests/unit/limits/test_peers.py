"""Addresses: what trusted proxies say is believed, and nothing that a client says."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bus.limits.peers import Peers, block_of

PROXIES = Peers([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # no proxy of ours: what it says counts for nothing
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # the left part is what the client made up
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.9.9.9, fd00::7", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),  # all of them ours: a proxy itself calls
        ("10.0.0.1", "198.51.100.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "nonsense, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", ", ,", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", '"[2001:db8::5]:4711"', "2001:db8::5"),
        ("10.0.0.1", "2001:db8::5", "2001:db8::5"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:203.0.113.9", None, "203.0.113.9"),
        ("fd00::1", "fe80::1%eth0", "fe80::1"),
        ("", "198.51.100.1", "198.51.100.1"),  # a Unix socket
        ("", None, "unix"),
    ],
)
def test_the_rightmost_address_that_is_no_trusted_proxy_calls(peer: str, forwarded: str | None, address: str) -> None:
    assert PROXIES.address(peer, forwarded) == address


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.1", ""])
def test_without_trusted_proxies_no_header_is_looked_at(peer: str) -> None:
    assert Peers([]).address(peer, "198.51.100.1") == (peer or "unix")


def test_a_header_of_many_thousand_hops_is_read_from_its_end_only() -> None:
    assert PROXIES.address("10.0.0.1", "6.6.6.6," * 5000 + "10.0.0.2," * 30 + "10.0.0.3") == "10.0.0.2"


def test_within_a_network_of_ipv6_all_addresses_are_one_caller() -> None:
    assert block_of("2001:db8:1:2:aaaa::1") == block_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert block_of("2001:db8:1:3::9") != block_of("2001:db8:1:2::9")
    assert block_of("203.0.113.9") == "203.0.113.9"
    assert block_of("unix") == "unix"
