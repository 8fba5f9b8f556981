"""The guard between what people ask jobq to reach and the networks that jobq stands in.

Probes and webhooks send requests to addresses that strangers choose, from inside the operator's network: without
a guard they read metadata services and databases (server-side request forgery). Two checks, both needed:

- ``check_url`` when a job is accepted: the URL has one meaning only, and a literal address in it is public;
- ``is_blocked`` when it executes: on *every* address that the name resolves to, before connecting to that very
  address, because what a name meant a moment ago (DNS rebinding) proves nothing.

The parser is strict instead of clever. Whatever two parsers could read differently (numbers that ``inet_aton``
takes for addresses, full-width digits, backslashes, percent-encoded hosts) is refused, and what executes the
request uses the parsed ``Target``, never the text again. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote

from jobq.errors import InvalidInput

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 8192
MAX_HOST_LENGTH = 253  # RFC 1035, without the final dot

_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)(?:#.*)?", re.DOTALL)
# Controls, blanks of any script, invisible and direction marks, halves of surrogate pairs.
_UNSEEN = re.compile(
    r"[\x00-\x20\x7f-\xa0\xad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ud800-\udfff]"
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?", re.DOTALL)
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A last label like this makes the whole host a number to inet_aton and to browsers (WHATWG: "ends in a number").
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_SENT_AS_IS = "!#$%&'()*+,-./:;=?@[]~_"

_LOOPBACK: tuple[Address, ...] = (ip_address("127.0.0.1"), ip_address("::1"))
_INSTANCE_DATA: tuple[Address, ...] = (ip_address("169.254.169.254"),)
_NAMES: dict[str, tuple[Address, ...]] = {
    "localhost": _LOOPBACK,
    "localhost.localdomain": _LOOPBACK,
    "localhost6": _LOOPBACK,
    "ip6-localhost": _LOOPBACK,
    "ip6-loopback": _LOOPBACK,
    "metadata": _INSTANCE_DATA,
    "metadata.goog": _INSTANCE_DATA,
    "metadata.google.internal": _INSTANCE_DATA,
    "instance-data": _INSTANCE_DATA,
    "instance-data.ec2.internal": _INSTANCE_DATA,
}
"""Names that mean an address wherever they are resolved: refused at once, as that address would be."""

METADATA: frozenset[Address] = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Google, Azure, OpenStack, DigitalOcean, Oracle
        "169.254.170.2",  # AWS ECS: credentials of the task
        "169.254.170.23",  # AWS EKS: pod identity
        "169.254.42.42",  # Scaleway
        "168.63.129.16",  # Azure: the wire server
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle, older form
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS
        "fd20:ce::254",  # Google
        "fd00:42::42",  # Scaleway
    )
)
"""Services that hand out credentials: no network that is allowed as a whole opens them, only their exact address."""

# IANA's special-purpose registries, and what routers treat likewise. The first match names the reason.
_DENIED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "an address of this very host"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a shared (carrier NAT) address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "a reserved (protocol assignment) address"),
    ("192.0.2.0/24", "an address for documentation"),
    ("192.88.99.0/24", "a 6to4 relay address"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "an address for benchmarks"),
    ("198.51.100.0/24", "an address for documentation"),
    ("203.0.113.0/24", "an address for documentation"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "the unspecified address"),
    ("::1/128", "a loopback address"),
    ("100::/64", "a discard-only address"),
    ("2001::/23", "a reserved (protocol assignment) address"),
    ("2001:db8::/32", "an address for documentation"),
    ("3fff::/20", "an address for documentation"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address"),
    ("ff00::/8", "a multicast address"),
)
_RANGES: dict[int, tuple[tuple[int, int, str], ...]] = {
    version: tuple(
        (int(net.network_address), int(net.broadcast_address), why)
        for net, why in ((ip_network(block), why) for block, why in _DENIED)
        if net.version == version
    )
    for version in (4, 6)
}
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that has been given out; the rest of IPv6 is reserved

_MAPPED = IPv6Network("::ffff:0:0/96")
# IPv6 forms that lead to an IPv4 address: prefix, reason, and how far the IPv4 bits are from the right.
_CARRIERS: tuple[tuple[IPv6Network, str, int], ...] = (
    (IPv6Network("::/96"), "a deprecated IPv4-compatible address", 0),
    (IPv6Network("::ffff:0:0:0/96"), "an IPv4-translated address", 0),
    (IPv6Network("64:ff9b::/96"), "a NAT64 address", 0),
    (IPv6Network("64:ff9b:1::/48"), "a NAT64 address for local use", 0),
    (IPv6Network("2002::/16"), "a 6to4 address", 80),
)
_TEREDO = IPv6Network("2001::/32")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that has been checked, in the parts that a request needs."""

    scheme: str
    """http or https."""
    host: str
    """For the Host header, SNI and the certificate: lower case, without a final dot or brackets."""
    port: int
    path: str
    """Path and query as they go into the request line; begins with a slash, ASCII only."""
    address: Address | None
    """Set where the host is a literal address; else ``lookup`` must be resolved."""
    lookup: str
    """The name to resolve: with the final dot where one was written, which turns search domains off."""

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """What may be shown of the URL: paths and queries can hold secrets."""
        return f"{self.scheme}://{self.authority}"


def check_url(url: str, allowed_networks: Iterable[Network], pointer: str = "") -> Target:
    """The URL in its parts, if it has one meaning only and does not name a forbidden address.

    Raises InvalidInput, ``invalid_url`` for its form or ``target_blocked`` for where it leads. A name says nothing
    of its addresses: check each of them with ``is_blocked`` when it has been resolved.
    """
    target = parse_url(url, pointer)
    allowed = tuple(allowed_networks)
    why = is_blocked(target.address, allowed) if target.address else _name_blocked(target.host, allowed)
    if why:
        raise InvalidInput(
            f"The host {target.host!r} is {why}, which jobq does not reach.",
            code="target_blocked",
            hint="The operator can allow networks with JOBQ_POLICY__PROBE_NETWORKS.",
            pointer=pointer,
        )
    return target


def parse_url(url: str, pointer: str = "") -> Target:
    """The URL in its parts, wherever it leads. Raises InvalidInput ``invalid_url``; never repeats the URL itself."""
    if len(url) > MAX_URL_LENGTH:
        raise _invalid(f"The URL has {len(url)} characters; at most {MAX_URL_LENGTH} are allowed.", pointer)
    if unseen := _UNSEEN.search(url):
        raise _invalid(f"The URL contains the blank or invisible character {unseen[0]!a}.", pointer)
    if "\\" in url:
        raise _invalid("The URL contains a backslash.", pointer, "Write '/', or %5C in the query.")
    found = _URL.fullmatch(url)
    scheme = found["scheme"].lower() if found else ""
    if not found or scheme not in _PORTS:
        raise _invalid("The URL does not begin with http:// or https://.", pointer)
    if "@" in found["authority"]:
        raise _invalid("The URL contains a user name or a password.", pointer, "Use the header Authorization.")
    parts = _AUTHORITY.fullmatch(found["authority"])
    if not parts or not parts["host"]:
        raise _invalid("The URL has no host, or a malformed one.", pointer, "Put brackets around an IPv6 address.")
    port = _PORTS[scheme] if parts["port"] is None else _port(parts["port"], pointer)
    path = found["rest"] if found["rest"].startswith("/") else "/" + found["rest"]
    host, address = _host(parts["host"], pointer)
    lookup = host + "." if address is None and parts["host"].endswith(".") else host
    return Target(scheme, host, port, quote(path, safe=_SENT_AS_IS), address, lookup)


def is_blocked(address: Address | str, allowed_networks: Iterable[Network] = ()) -> str | None:
    """Why this address must not be reached ("a loopback address"), or None: it may.

    An allowed network opens everything in it but the metadata services, which only their exact address (/32 or
    /128) opens. An IPv4-mapped address is judged as the IPv4 address in it; the other forms that carry one must be
    allowed themselves, and so must what they carry.
    """
    return _verdict(ip_address(address) if isinstance(address, str) else address, tuple(allowed_networks))


@lru_cache(maxsize=4096)
def _verdict(address: Address, allowed: tuple[Network, ...]) -> str | None:
    opened = [net for net in allowed if address in net]
    if isinstance(address, IPv6Address):
        if address in _MAPPED:
            return _verdict(IPv4Address(int(address) & 0xFFFFFFFF), allowed)
        why, carried = _carried(address)
        if why and not opened:
            return why
        for inner in carried:
            if why := _verdict(inner, allowed):
                return f"{why} inside an IPv6 address"
    if address in METADATA:
        exact = any(net.prefixlen == net.max_prefixlen for net in opened)
        return None if exact else "a cloud metadata address"
    if opened:
        return None
    for first, last, reason in _RANGES[address.version]:
        if first <= int(address) <= last:
            return reason
    return "a reserved address" if address.version == 6 and address not in _GLOBAL_UNICAST else None


def _carried(address: IPv6Address) -> tuple[str | None, list[IPv4Address]]:
    """What kind of carrier the address is, and the IPv4 addresses in it."""
    bits = int(address)
    if address in _TEREDO:  # RFC 4380: the server, and the client with all bits turned
        return "a Teredo address", [IPv4Address(bits >> 64 & 0xFFFFFFFF), IPv4Address(~bits & 0xFFFFFFFF)]
    if bits > 1:  # :: and ::1 are no IPv4-compatible addresses
        for net, why, shift in _CARRIERS:
            if address in net:
                return why, [IPv4Address(bits >> shift & 0xFFFFFFFF)]
    return None, []


def _name_blocked(name: str, allowed: tuple[Network, ...]) -> str | None:
    meant = _LOOPBACK if name.endswith(".localhost") else _NAMES.get(name, ())
    reasons = [_verdict(address, allowed) for address in meant]
    return reasons[0] if reasons and all(reasons) else None


def _host(text: str, pointer: str) -> tuple[str, Address | None]:
    """The host in lower case, and its address where it is a literal."""
    if text.startswith("["):
        try:
            if "%" in text:
                raise ValueError("a zone")
            address = IPv6Address(text[1:-1])
        except ValueError:
            raise _invalid("The host in brackets is no IPv6 address (zones are not allowed).", pointer) from None
        return str(address), address
    if not text.isascii():
        raise _invalid(
            f"The host {text[:100]!a} is not ASCII.", pointer, "Write an international name in its form xn--…"
        )
    host = text.removesuffix(".").lower()
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            literal = IPv4Address(host)
        except ValueError:
            raise _invalid(
                f"The host {host[:100]!r} is a number, but no plain IPv4 address.", pointer,
                "Write four decimal numbers without leading zeros.",
            ) from None  # fmt: skip
        return str(literal), literal
    if len(host) > MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid(f"The host {host[:100]!r} is no host name.", pointer)
    return host, None


def _port(text: str, pointer: str) -> int:
    port = int(text) if _PORT.fullmatch(text) else 0
    if not 1 <= port <= 65535:
        raise _invalid("The port is not a number from 1 to 65535.", pointer)
    return port


def _invalid(message: str, pointer: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, code="invalid_url", hint=hint, pointer=pointer)
