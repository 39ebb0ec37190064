"""Decides which URLs and which addresses the product may call (against server-side request forgery). Pure: no I/O.

A URL is judged twice. `check_url` reads it, once and for all: what is called later is what was read here, so that no
second parser can see another host in it. `vet` judges every address that its name has at the moment of the call, and
the caller connects to one of these and asks no resolver again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import quote

from msgspec import Struct

from bus.addresses import LOOPBACK, Address, Network, contains, host_name, parse, refusal
from bus.errors import ForbiddenTarget

PORTS = frozenset({80, 443, 8080, 8443})
DEFAULT_PORTS = {"http": 80, "https": 443}
REASONS = ("loopback", "private", "link_local", "reserved", "scheme", "port", "url")
"""What a refusal is counted by; `url`: it can't be read, or holds what it may not."""

MAX_URL_CHARACTERS = 2048

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?")
_AUTHORITY = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_UNFIT = re.compile(r"[\x00-\x20\x7f-\x9f\\\ud800-\udfff]")


class Target(Struct, frozen=True, kw_only=True):
    """A URL that was read: `host` as TLS and certificates name it, `path` with its query as it is sent.

    `addresses` are those that the URL itself names; without any, a resolver is asked.
    """

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The value of `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class Guard:
    """Immutable, so any thread may use it.

    `allowed` networks may be called although the table refuses them, and on any port. `https_only` refuses http, there
    too. `extra_ports` are free beside 80, 443, 8080 and 8443.
    """

    def __init__(
        self, allowed: Sequence[Network] = (), *, https_only: bool = False, extra_ports: Iterable[int] = ()
    ) -> None:
        self._allowed = tuple(allowed)
        self._https_only = https_only
        self._ports = PORTS | set(extra_ports)

    def check_url(self, url: str) -> Target:
        """Read a URL. Raises ForbiddenTarget for one that could never be called, whatever its name resolves to."""
        if not 0 < len(url) <= MAX_URL_CHARACTERS:
            raise refused(f"A URL has 1 to {MAX_URL_CHARACTERS} characters.")
        if _UNFIT.search(url):
            raise refused("The URL holds a space, a backslash or a control character; percent-encode it.")
        parts = _URL.match(url)
        scheme = parts["scheme"].lower() if parts else ""
        if parts is None or scheme not in DEFAULT_PORTS:
            raise ForbiddenTarget("The URL must begin with https:// or http://.", "scheme")
        if self._https_only and scheme != "https":
            raise ForbiddenTarget("Only https:// may be called here (WEBHOOK_HTTPS_ONLY).", "scheme")
        host, port, literal = read_authority(parts["authority"])
        target = Target(
            scheme=scheme,
            host=host,
            port=DEFAULT_PORTS[scheme] if port is None else port,
            path=quote((parts["path"] or "/") + (parts["query"] or ""), safe=VISIBLE),
            addresses=(host,) if literal else self._loopback(host),
        )
        if target.addresses:
            self.vet(target.addresses, target.port)
        elif target.port not in self._ports and not self._allowed:
            raise self._wrong_port(target.port)
        return target

    def vet(self, addresses: Iterable[str], port: int = 443) -> list[str]:
        """The addresses in their usual form. Raises ForbiddenTarget if a single one of them may not be called."""
        return [self._judge(address, port) for address in addresses]

    def _judge(self, text: str, port: int) -> str:
        try:
            address = parse(text)
        except ValueError:
            raise refused("The host has an address that can't be read.") from None
        if contains(self._allowed, address):
            return str(address)
        found = refusal(address)
        if found is not None:
            raise ForbiddenTarget(
                f"The host has the address {address}, in {found[0]} ({found[1]}), which may not be called;"
                " WEBHOOK_ALLOWED_TARGETS allows it.",
                reason_of(address, found[1]),
            )
        if port not in self._ports:
            raise self._wrong_port(port)
        return str(address)

    def _loopback(self, host: str) -> tuple[str, ...]:
        """What `localhost` means: of its two addresses those that are allowed, or all, to be refused."""
        if host != "localhost" and not host.endswith(".localhost"):
            return ()
        return tuple(address for address in LOOPBACK if contains(self._allowed, parse(address))) or LOOPBACK

    def _wrong_port(self, port: int) -> ForbiddenTarget:
        ports = ", ".join(map(str, sorted(self._ports)))
        return ForbiddenTarget(
            f"Port {port} may not be called, only {ports}; WEBHOOK_ALLOWED_PORTS adds to them.", "port"
        )


VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
"""What stays as it is in a path; the rest is percent-encoded as UTF-8."""


def read_authority(authority: str) -> tuple[str, int | None, bool]:
    """(host, port, whether the host is an address) of `host:port`. Raises ForbiddenTarget."""
    if "@" in authority:
        raise refused("The URL holds a user name or a password; send credentials in a header instead.")
    if "%" in authority:
        raise refused("The host holds a %: write its characters as they are, and no scope.")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise refused("The URL's host or port can't be read.")
    port = int(parts["port"]) if parts["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise refused("A port is 1 to 65535.")
    try:
        if parts["six"] is not None:
            return str(parse(str(IPv6Address(parts["six"])))), port, True
        host = host_name(parts["host"])
    except AddressValueError:
        raise refused("The URL's IPv6 address can't be read.") from None
    except ValueError as error:
        raise refused(str(error)) from None
    return host, port, host.rpartition(".")[2].isdigit()


def reason_of(address: Address, what: str) -> str:
    """The word for an address that is in a network of this kind (bus.addresses): loopback, private, link_local, reserved."""
    if str(address) in LOOPBACK:
        return "loopback"
    return _BY_KIND.get(what.partition(",")[0], "reserved")


_BY_KIND = {
    "loopback": "loopback",
    "private": "private",
    "shared by carriers": "private",
    "link-local": "link_local",
    "the metadata of a cloud": "link_local",
}


def refused(sentence: str) -> ForbiddenTarget:
    return ForbiddenTarget(sentence, "url")
