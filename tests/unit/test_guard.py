"""Which addresses and which URLs may be called: the table with its borders, spellings, ports, and what is allowed on top."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus.addresses import REFUSED_V4, REFUSED_V6, contains, parse, refusal
from bus.errors import ForbiddenTarget
from bus.guard import REASONS, Guard, Target

V4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
V6 = [
    "::/8",
    "100::/64",
    "2001::/32",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
]
OPEN = Guard()
TO_LOOPBACK = Guard([ip_network("127.0.0.0/8")])


def sentence(guard: Guard, url: str) -> str:
    """Why a URL is refused."""
    with pytest.raises(ForbiddenTarget) as refused:
        guard.check_url(url)
    assert refused.value.code == "forbidden_target"
    assert refused.value.status == 400
    return refused.value.sentence


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://localhost/", "loopback"),
        ("http://127.1.2.3/", "loopback"),
        ("http://[::1]/", "loopback"),
        ("http://[::ffff:7f00:1]/", "loopback"),
        ("http://[64:ff9b::7f00:1]/", "loopback"),
        ("http://10.1.2.3/", "private"),
        ("http://100.64.0.1/", "private"),
        ("http://[fd00::1]/", "private"),
        ("http://169.254.169.254/", "link_local"),
        ("http://[fd00:ec2::254]/", "link_local"),
        ("http://[fe80::1]/", "link_local"),
        ("http://0.0.0.0/", "reserved"),
        ("http://[::]/", "reserved"),
        ("http://[2002:7f00:1::]/", "reserved"),
        ("ftp://example.com/", "scheme"),
        ("http://example.com:25/", "port"),
        ("http://user@example.com/", "url"),
        ("http://2130706433/", "url"),
    ],
)
def test_a_refusal_has_a_word_to_be_counted_by(url: str, reason: str) -> None:
    with pytest.raises(ForbiddenTarget) as refused:
        OPEN.check_url(url)
    assert refused.value.reason == reason
    assert reason in REASONS


# ---- the table


def test_the_table_is_the_one_that_was_agreed_on() -> None:
    assert {str(network) for network in REFUSED_V4} == set(V4)
    assert {str(network) for network in REFUSED_V6} == set(V6)


@pytest.mark.parametrize("cidr", V4 + V6)
def test_a_network_is_refused_from_its_first_to_its_last_address_and_no_further(cidr: str) -> None:
    network = ip_network(cidr)
    first, last = int(network[0]), int(network[-1])
    kind = IPv4Address if network.version == 4 else IPv6Address
    others = [ip_network(other) for other in V4 + V6 if other != cidr]
    for number in {first, (first + last) // 2, last}:
        assert refusal(kind(number)) is not None, kind(number)
    for number in (first - 1, last + 1):
        if 0 <= number < 2**network.max_prefixlen:
            elsewhere = any(kind(number) in other for other in others if other.version == network.version)
            assert (refusal(kind(number)) is not None) == elsewhere, kind(number)


@pytest.mark.parametrize("prefix", ["::ffff:0:0", "64:ff9b::"])
@pytest.mark.parametrize(
    ("inside", "good"),
    [("8.8.8.8", True), ("1.1.1.1", True), ("127.0.0.1", False), ("169.254.169.254", False), ("10.0.0.1", False)],
)
def test_an_address_that_carries_an_ipv4_address_is_judged_by_that(prefix: str, inside: str, good: bool) -> None:
    carrier = IPv6Address(int(IPv6Address(prefix)) | int(IPv4Address(inside)))
    assert (refusal(carrier) is None) == good
    assert (refusal(parse(str(carrier))) is None) == good


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "::127.0.0.1",  # IPv4-compatible
        "::ffff:0:127.0.0.1",  # SIIT
        "64:ff9b:1::1",  # local NAT64
        "64:ff9b::1:7f00:1",  # behind the /96
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
        "fd00:ec2::254",
        "fe80::5efe:7f00:1",  # ISATAP
        "255.255.255.255",
    ],
)
def test_odd_carriers_and_reserved_addresses_are_refused(address: str) -> None:
    assert refusal(ip_address(address)) is not None


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450::1", "2001:4860::8888"]
)
def test_the_open_internet_is_not_refused(address: str) -> None:
    assert refusal(ip_address(address)) is None
    assert OPEN.vet([address]) == [address]


# ---- addresses of a name


@pytest.mark.parametrize(
    "bad",
    ["127.0.0.1", "::1", "10.1.2.3", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1%2", "::ffff:10.0.0.1", "junk"],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_address_is_enough(bad: str, place: int) -> None:
    addresses = ["8.8.8.8", "2606:2800:220:1::1"]
    addresses.insert(place, bad)
    with pytest.raises(ForbiddenTarget):
        OPEN.vet(addresses)


def test_allowed_networks_are_allowed_and_nothing_beside_them() -> None:
    guard = Guard([ip_network("10.1.0.0/16"), ip_network("fd00::/8")])
    assert guard.vet(["10.1.255.255", "fd12::1", "::ffff:10.1.0.1", "8.8.8.8"]) == [
        "10.1.255.255",
        "fd12::1",
        "10.1.0.1",
        "8.8.8.8",
    ]
    assert contains([ip_network("10.1.0.0/16")], ip_address("64:ff9b::10.1.0.9"))
    for address in ("10.2.0.0", "10.0.255.255", "127.0.0.1", "::1", "fc00::1", "64:ff9b::10.2.0.1"):
        with pytest.raises(ForbiddenTarget, match="WEBHOOK_ALLOWED_TARGETS"):
            guard.vet([address])


def test_an_allowed_network_frees_the_port_for_its_own_addresses_only() -> None:
    assert TO_LOOPBACK.check_url("http://127.0.0.1:9000/").port == 9000
    assert TO_LOOPBACK.check_url("http://receiver.example:9000/").addresses == ()  # its addresses will tell
    assert TO_LOOPBACK.vet(["127.0.0.1"], 9000) == ["127.0.0.1"]
    with pytest.raises(ForbiddenTarget, match="Port 9000"):
        TO_LOOPBACK.vet(["127.0.0.1", "8.8.8.8"], 9000)


# ---- URLs


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        ("HTTP://Example.COM", "example.com", 80, "/", "example.com"),
        ("https://example.com.:8443/a?b=c#d", "example.com", 8443, "/a?b=c", "example.com:8443"),
        ("https://example.com?q", "example.com", 443, "/?q", "example.com"),
        ("https://example.com:443/%2F%zz;x='y'", "example.com", 443, "/%2F%zz;x='y'", "example.com"),
        ("http://example.com:443/", "example.com", 443, "/", "example.com:443"),
        ("https://bücher.example/ü?ü", "xn--bcher-kva.example", 443, "/%C3%BC?%C3%BC", "xn--bcher-kva.example"),
        ("https://faß.de/", "xn--fa-hia.de", 443, "/", "xn--fa-hia.de"),
        ("https://пример.example/", "xn--e1afmkfd.example", 443, "/", "xn--e1afmkfd.example"),
        ("https://a_b.example/@user:x", "a_b.example", 443, "/@user:x", "a_b.example"),
        ("https://1.1.1.1/", "1.1.1.1", 443, "/", "1.1.1.1"),
        ("https://1password.example/", "1password.example", 443, "/", "1password.example"),
        ("http://[2606:2800:220:1::1]:8080/", "2606:2800:220:1::1", 8080, "/", "[2606:2800:220:1::1]:8080"),
        ("http://[::ffff:8.8.8.8]/", "8.8.8.8", 80, "/", "8.8.8.8"),
    ],
)
def test_a_url_is_read(url: str, host: str, port: int, path: str, authority: str) -> None:
    target = OPEN.check_url(url)
    assert (target.host, target.port, target.path, target.authority) == (host, port, path, authority)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "0177.0.0.01",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "127.0.0.01",
        "127.0.0.0x1",
        "127。0。0。1",
        "①②⑦.⓪.⓪.①",
        "１２７.0.0.1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:7f00:1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::1%25lo]",
        "[fe80::1%25eth0]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "ⓛocalhost",
        "127.0.0.1%00.example.com",
        "127.0.0.1\x00.example.com",
        "example.com\\@127.0.0.1",
        "example.com@127.0.0.1",
        "user:secret@example.com",
        "127.0.0.1 ",
        "\t127.0.0.1",
        "127.0.0.1\n",
        "0",
        "0.0.0.0",
        "[::]",
    ],
)
def test_every_spelling_of_this_machine_is_refused(host: str) -> None:
    said = sentence(OPEN, f"http://{host}/")
    assert said.endswith(".")
    assert "secret" not in said


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1%25lo]", "user@127.0.0.1", "[::1]"]
)
def test_odd_spellings_stay_refused_where_loopback_is_allowed(host: str) -> None:
    sentence(TO_LOOPBACK, f"http://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "http:/example.com",
        "http:///path",
        "http://",
        "http://:80/",
        "http://example.com:/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:８０/",
        "http://example.com:80:80/",
        "http://example.com:22/",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nX: y",
        "http://example.com/\ud800",
        "http://.example.com/",
        "http://a..b/",
        "http://-a.example/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 127 + "example/",
        "http://[::1/",
        "http://[v1.x]/",
        "http://a]b/",
        "http://example.com/" + "a" * 2048,
    ],
)
def test_what_is_no_good_url_is_refused(url: str) -> None:
    assert sentence(OPEN, url).endswith(".")


def test_a_scope_is_refused_even_where_the_network_is_allowed() -> None:
    guard = Guard([ip_network("fe80::/10")])
    assert guard.vet(["fe80::1"]) == ["fe80::1"]
    with pytest.raises(ForbiddenTarget):
        guard.vet(["fe80::1%2"])
    assert "%" in sentence(guard, "http://[fe80::1%25eth0]/")


def test_localhost_means_what_is_allowed_of_it() -> None:
    assert TO_LOOPBACK.check_url("http://localhost:9000/").addresses == ("127.0.0.1",)
    both = Guard([ip_network("127.0.0.1"), ip_network("::1")])
    assert both.check_url("http://hook.localhost/").addresses == ("127.0.0.1", "::1")


def test_http_can_be_turned_off_and_ports_added() -> None:
    guard = Guard([ip_network("127.0.0.0/8")], https_only=True, extra_ports=[9443])
    assert guard.check_url("https://example.com:9443/").secure
    assert "WEBHOOK_HTTPS_ONLY" in sentence(guard, "http://127.0.0.1/")
    assert "9443" in sentence(Guard(extra_ports=[9443]), "https://example.com:9444/")


@given(st.text(max_size=60).map("http://".__add__) | st.text(max_size=60))
@example("http://xn--a/")
def test_any_text_is_a_target_or_refused(url: str) -> None:
    try:
        target = OPEN.check_url(url)
    except ForbiddenTarget:
        return
    assert isinstance(target, Target)
    assert target.authority.isascii()
    assert target.path.isascii()
    assert OPEN.check_url(f"{target.scheme}://{target.authority}{target.path}") == target  # one reading, for good
