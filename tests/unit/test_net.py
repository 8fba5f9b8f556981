"""The SSRF guard: which URLs are accepted, and which addresses are reached."""

# ruff: noqa: RUF001 - look-alikes of digits and dots are what is tested
import ipaddress
import random
import socket
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobq.errors import InvalidInput
from jobq.net import METADATA, Network, check_url, is_blocked, parse_url
from tests.unit.hostile_urls import FORBIDDEN, MALFORMED, PUBLIC

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
EVERYTHING = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@pytest.mark.parametrize("url", MALFORMED)
def test_a_url_that_two_parsers_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, EVERYTHING, "/spec/endpoint")
    assert (refused.value.code, refused.value.pointer) == ("invalid_url", "/spec/endpoint")
    assert str(refused.value).isprintable() or "\n" not in str(refused.value)


@pytest.mark.parametrize("url", FORBIDDEN)
def test_a_url_that_leads_inside_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, (), "/spec/endpoint")
    assert (refused.value.code, refused.value.pointer) == ("target_blocked", "/spec/endpoint")
    assert "JOBQ_POLICY__PROBE_NETWORKS" in str(refused.value)


@pytest.mark.parametrize(("url", "parts"), PUBLIC.items())
def test_a_public_url_is_taken_apart(url: str, parts: tuple[str, str, int, str]) -> None:
    target = check_url(url, ())
    assert (target.scheme, target.host, target.port, target.path) == parts


def test_a_refusal_never_repeats_a_password() -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url("http://user:hunter2@example.com/", ())
    assert "hunter2" not in str(refused.value)


def test_a_final_dot_reaches_the_resolver_but_neither_the_host_header_nor_the_certificate() -> None:
    target = parse_url("https://example.com.:8443/")
    assert (target.lookup, target.host, target.authority) == (
        "example.com.",
        "example.com",
        "example.com:8443",
    )


def test_the_host_header_names_the_port_unless_it_is_the_scheme_s_own() -> None:
    assert parse_url("http://example.com:80/").authority == "example.com"
    assert parse_url("https://example.com:80/").authority == "example.com:80"
    assert parse_url("http://[2606::1]:8080/").authority == "[2606::1]:8080"


def test_an_allowed_network_opens_its_addresses_and_the_names_that_mean_them() -> None:
    for url in (
        "http://127.0.0.1:8080/",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost/",
        "http://x.localhost/",
    ):
        check_url(url, LOOPBACK)
    for url in ("http://10.0.0.1/", "http://[::1]/", "http://metadata.google.internal/"):
        with pytest.raises(InvalidInput):
            check_url(url, LOOPBACK)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", sorted(map(str, METADATA)))
def test_a_metadata_service_is_opened_by_its_exact_address_only(address: str) -> None:
    length = ipaddress.ip_address(address).max_prefixlen
    near = ipaddress.ip_network(f"{address}/{length - 1}", strict=False)
    assert is_blocked(address) == "a cloud metadata address"
    assert is_blocked(address, EVERYTHING) == "a cloud metadata address"
    assert is_blocked(address, (near,)) == "a cloud metadata address"
    assert is_blocked(address, (*EVERYTHING, ipaddress.ip_network(f"{address}/{length}"))) is None


def test_a_mapped_address_is_judged_as_the_address_in_it() -> None:
    assert is_blocked("::ffff:127.0.0.1") == "a loopback address"
    assert is_blocked("::ffff:127.0.0.1", LOOPBACK) is None
    assert is_blocked("::ffff:127.0.0.1", (ipaddress.ip_network("::/0"),)) == "a loopback address"
    assert is_blocked("::ffff:8.8.8.8") is None


@pytest.mark.parametrize(
    ("carrier", "inner"),
    [
        ("64:ff9b::{:x}:{:x}", "64:ff9b::/96"),
        ("64:ff9b:1::{:x}:{:x}", "64:ff9b:1::/48"),
        ("::{:x}:{:x}", "::/96"),
        ("::ffff:0:{:x}:{:x}", "::ffff:0:0:0/96"),
        ("2002:{:x}:{:x}::", "2002::/16"),
        ("2001:0:{:x}:{:x}::f7f7:f7f7", "2001::/32"),  # the client is 8.8.8.8
    ],
)
def test_an_address_that_carries_another_needs_both_allowed(carrier: str, inner: str) -> None:
    private, public, metadata = (
        carrier.format(*divmod(int(ipaddress.ip_address(text)), 65536))
        for text in ("10.0.0.1", "8.8.8.8", "169.254.169.254")
    )
    outer = ipaddress.ip_network(inner)
    assert is_blocked(private)
    assert is_blocked(public)
    assert is_blocked(public, (outer,)) is None
    assert is_blocked(private, (outer,)) == "a private address inside an IPv6 address"
    assert is_blocked(private, (ipaddress.ip_network("10.0.0.0/8"),))
    assert is_blocked(private, (outer, ipaddress.ip_network("10.0.0.0/8"))) is None
    assert is_blocked(metadata, (*EVERYTHING, outer))


def test_the_client_in_a_teredo_address_is_looked_at_too() -> None:
    hidden = "2001:0:808:808::" + "{:x}:{:x}".format(
        *divmod(~int(ipaddress.ip_address("10.0.0.1")) & 0xFFFFFFFF, 65536)
    )
    assert is_blocked(hidden, (ipaddress.ip_network("2001::/32"),)) == "a private address inside an IPv6 address"


def test_a_zone_does_not_change_what_an_address_is() -> None:
    assert is_blocked("fe80::1%eth0") == "a link-local address"
    assert is_blocked("::1%lo") == "a loopback address"


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(addresses)
def test_whatever_the_standard_library_calls_not_global_is_blocked(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assume(not (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped))
    if not address.is_global or address.is_multicast:
        assert is_blocked(address)


@given(addresses, st.lists(st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "fc00::/7", "0.0.0.0/0", "::/0"])))
def test_allowing_networks_never_closes_an_address_and_opens_none_outside(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, blocks: list[str]
) -> None:
    allowed: tuple[Network, ...] = tuple(map(ipaddress.ip_network, blocks))
    if is_blocked(address) is None:
        assert is_blocked(address, allowed) is None
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped
    if is_blocked(address) and not mapped and not any(address in block for block in allowed):
        assert is_blocked(address, allowed)


# --- any spelling of a private address -------------------------------------------------------------------------------

PRIVATE = ["127.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8"]
private_addresses = st.sampled_from(PRIVATE).flatmap(lambda block: st.ip_addresses(network=block))


def spelled(number: int, rng: random.Random) -> str:
    """The address in one of the forms that inet_aton or an IPv6 parser takes for it."""
    octets = [number >> shift & 255 for shift in (24, 16, 8, 0)]
    kept = rng.randrange(4)  # so many octets stand alone, the last part holds the rest
    parts = [*octets[:kept], number & (1 << 8 * (4 - kept)) - 1]
    bases: list[Callable[[int], str]] = [
        str,
        hex,
        lambda n: f"0{n:o}",
        lambda n: f"0X{n:08X}",
        lambda n: f"0x{n:010x}",
    ]
    text = ".".join(rng.choice(bases)(part) for part in parts)
    high, low = divmod(number, 65536)
    return rng.choice(
        [
            text,
            text + ".",
            text.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)}),
            text.replace(".", rng.choice("。．｡")),
            text.replace(".", "%2e"),
            f"[::ffff:{high:x}:{low:x}]",
            f"[::ffff:{ipaddress.IPv4Address(number)}]",
            f"[0:0:0:0:0:FFFF:{high:04X}:{low:04X}]",
            f"[::{high:x}:{low:x}]",
            f"[64:ff9b::{ipaddress.IPv4Address(number)}]",
            f"[2002:{high:x}:{low:x}::1]",
        ]
    )


@given(private_addresses, st.randoms(use_true_random=False), st.sampled_from(["", ":80", ":8080"]))
def test_no_spelling_of_a_private_address_passes(address: ipaddress.IPv4Address, rng: random.Random, port: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(f"http://{spelled(int(address), rng)}{port}/", ())


@given(st.text(alphabet="0123456789abcdefxX.:[]%@/\\ -_。１", max_size=24))
def test_whatever_the_c_library_takes_for_a_number_is_refused_or_read_the_same(host: str) -> None:
    try:
        target = check_url(f"http://{host}", EVERYTHING)
    except InvalidInput:
        return
    try:
        meant = ipaddress.IPv4Address(socket.inet_aton(target.lookup))
    except OSError:
        return
    assert target.address == meant


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    for url in (text, f"http://{text}", f"http://example.com{text}"):
        try:
            target = parse_url(url)
        except InvalidInput as error:
            assert error.code == "invalid_url"  # noqa: PT017 - both ends are fine, but only these two
        else:
            request_line = f"GET {target.path} Host: {target.authority}"
            assert request_line.isascii()
            assert request_line.isprintable()
            assert target.path.startswith("/")
            assert " " not in target.path + target.authority
