"""The HTTP connector: pages, waiting, rules, and where it does not go."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from jobq.connectors import (
    Access,
    ConnectorError,
    Entity,
    InvalidConfiguration,
    InvalidCredentials,
    InvalidPayload,
    NotNow,
    Read,
    Unavailable,
)
from jobq.errors import InvalidInput
from jobq.net import Address
from jobq.settings import Policy
from jobq.testing import read_all
from jobq.validation import parse
from tests.peers import TOKEN, HttpPeer
from workers.connectors.answers import Answer, judge_read, judge_write, retry_after
from workers.connectors.http import HttpSource, HttpTarget
from workers.connectors.http_configs import HttpSourceConfig, HttpTargetConfig, RateLimit, Rule
from workers.connectors.pace import Pace
from workers.connectors.pages import fill, newest, next_link, with_params
from workers.connectors.session import Session

LOCAL = Policy(probe_networks=["127.0.0.0/8"])
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def source(config: dict[str, Any], access: Access | None = None) -> HttpSource:
    return HttpSource(parse(HttpSourceConfig, config), access or Access(LOCAL))


def target(config: dict[str, Any], access: Access | None = None) -> HttpTarget:
    return HttpTarget(parse(HttpTargetConfig, config), access or Access(LOCAL))


def write(one: HttpTarget, *entities: Entity) -> list[Any]:
    async def run() -> list[Any]:
        try:
            return [await one.write(entity) for entity in entities]
        finally:
            await one.close()

    return asyncio.run(run())


ENTITY = Entity("k1", {"id": "k1"}, "job-1")


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "url"),
    [
        ('<https://a/2>; rel="next"', "https://a/2"),
        ("<https://a/2>; rel=next", "https://a/2"),
        ('<https://a/1>; rel="prev", <https://a/3>; rel="next"', "https://a/3"),
        ('<https://a/1?x=a,b>; title="one, two; rel=next"; rel="first", </3>; rel="last next"', "/3"),
        ('<https://a/1>; rel="previous"', None),
        ("", None),
        ("garbage", None),
    ],
)
def test_the_next_page_is_in_the_link_header(header: str, url: str | None) -> None:
    assert next_link(header) == url


def test_parameters_take_the_place_of_those_of_the_same_name() -> None:
    assert with_params("https://a/x?page=7&q=a%26b#f", {"page": 2}) == "https://a/x?q=a%26b&page=2"
    assert with_params("https://a/x", {"all": True}) == "https://a/x?all=true"
    assert with_params("https://a/x?q=1", {}) == "https://a/x?q=1"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["2026-01-01T01:00:00+02:00", "2026-01-01T00:00:00Z"], "2026-01-01T00:00:00Z"),
        ([9, 10, 2], 10),
        (["9", "10"], "10"),
        ([None, "b", "a"], "b"),
        ([], None),
    ],
)
def test_the_newest_state_is_found_by_its_meaning(states: list[Any], expected: Any) -> None:
    assert newest(None, [{"at": state} for state in states], "at") == expected


def test_a_service_that_gives_the_same_page_for_ever_is_found_out() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, [{"id": 1}])] * 5
        with pytest.raises(InvalidConfiguration, match="two pages in a row are the same"):
            read_all(source({"url": f"{peer.url}/x", "pagination": {"type": "page"}}))


def test_a_cursor_that_leads_to_itself_is_found_out() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, {"data": [{"id": 1}], "next": "c"})] * 5
        config = {"url": peer.url, "records": "data", "pagination": {"type": "cursor", "next": "next"}}
        with pytest.raises(InvalidConfiguration, match="its next page is itself"):
            read_all(source(config))


def test_a_server_that_caps_the_page_size_loses_nothing() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, [{"id": 1}, {"id": 2}]), (200, {}, [{"id": 3}]), (404, {}, {})]
        config = {"url": peer.url, "pagination": {"type": "page"}, "page_size": 100, "size_param": "limit"}
        assert [record["id"] for record in read_all(source(config)).records] == [1, 2, 3]
        assert [request.query for request in peer.requests][1] == {"limit": "100", "page": "2"}


def test_credentials_do_not_go_to_another_origin() -> None:
    with HttpPeer() as peer, HttpPeer() as other:
        peer.answers = [(200, {"Link": f'<{other.url}/2>; rel="next"'}, [{"id": 1}])]
        other.answers = [(200, {}, [{"id": 2}])]
        config = {
            "url": peer.url, "pagination": {"type": "link"}, "headers": {"X-Tenant": "acme"},
            "auth": {"type": "bearer", "secret": "t"}, "secrets": {"t": "t"},
        }  # fmt: skip
        seen = read_all(source(config, Access(LOCAL, {"t": TOKEN})))
        assert [record["id"] for record in seen.records] == [1, 2]
        assert peer.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
        assert not {"Authorization", "X-Tenant"} & other.requests[0].headers.keys()


@pytest.mark.parametrize("pagination", [{"type": "link"}, {"type": "cursor", "next": "next"}])
def test_a_cursor_never_holds_a_secret_and_reads_on_all_the_same(pagination: dict[str, Any]) -> None:
    secret, escaped = "s3cret/to=ken", "s3cret%2Fto%3Dken"
    with HttpPeer() as peer:
        link = {"Link": f'<{peer.url}/?page=2&access_token={escaped}>; rel="next"'}
        first = {"items": [{"id": 1}], "next": f"2-{secret}"}
        second = (200, {}, {"items": [{"id": 2}], "next": None})
        peer.answers = [(200, link, first), second, second]
        config = {"url": peer.url, "pagination": pagination, "records": "items", "secrets": {"t": "t"}}
        access = Access(LOCAL, {"t": secret})
        seen = read_all(source(config, access))
        cursors = [batch.cursor for batch in seen.batches]
        assert not [cursor for cursor in cursors if secret in str(cursor) or escaped in str(cursor)]
        again = read_all(source(config, access), Read(cursor=cursors[0]))
        assert [record["id"] for record in again.records] == [2]
        assert peer.requests[-1].query == peer.requests[1].query
        assert secret in str(peer.requests[-1].query)


def test_a_next_page_in_the_operators_network_is_refused() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {"Link": '<http://169.254.169.254/latest>; rel="next"'}, [{"id": 1}])]
        with pytest.raises(InvalidConfiguration, match="metadata"):
            read_all(source({"url": peer.url, "pagination": {"type": "link"}}))


def test_since_is_an_instant_in_iso_8601() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, [])]
        config = {"url": peer.url, "since_param": "since", "state": "at"}
        read_all(source(config), Read(since=datetime(2026, 1, 1, 2, tzinfo=UTC), state="2025"))
        assert peer.requests[0].query == {"since": "2026-01-01T02:00:00Z"}


def test_what_is_no_record_is_a_problem_and_the_rest_is_read() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, [{"id": 1}, "two", None, {"id": 4}])]
        seen = read_all(source({"url": peer.url}))
        assert [record["id"] for record in seen.records] == [1, 4]
        assert [problem.where for problem in seen.problems] == ["record 2 of a page", "record 3 of a page"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": None}, r"there is nothing at 'data' \(where an empty list is written as null: data"),
        ({"data": 7}, "there is no list at 'data'"),
        (b"<html>", "it is no JSON"),
        (b'{"data": [NaN]}', "NaN is no JSON number"),
    ],
)
def test_an_answer_that_is_not_as_configured_says_how(content: Any, message: str) -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, content)]
        with pytest.raises(InvalidConfiguration, match=message):
            read_all(source({"url": peer.url, "records": "data"}))


def test_a_cursor_of_another_source_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="does not come from this source"):
        read_all(source({"url": "http://127.0.0.1/"}), Read(cursor={"file": "x"}))


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("120", 120), ("99999999999999999999", 604_800),
        ("Thu, 01 Jan 2026 00:01:30 GMT", 90), ("Wed, 31 Dec 2025 23:59:00 GMT", 0),
        ("Thursday, 01-Jan-26 00:01:30 GMT", 90),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert retry_after({"Retry-After": text}, NOW) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "\N{SUPERSCRIPT TWO}"])
def test_a_retry_after_that_says_nothing_is_none(text: str) -> None:
    assert retry_after({"Retry-After": text}, NOW) is None


def test_a_page_that_is_asked_for_too_early_is_waited_for() -> None:
    with HttpPeer() as peer:
        peer.answers = [(429, {"Retry-After": "1"}, {}), (503, {"Retry-After": "0"}, {}), (200, {}, [{"id": 1}])]
        log: list[str] = []
        began = time.monotonic()
        assert len(read_all(source({"url": peer.url}, Access(LOCAL, log=log.append))).records) == 1
        assert time.monotonic() - began >= 1
        assert log == [f"GET {peer.url} was answered with 429 Too Many Requests: waiting 1 s",
                       f"GET {peer.url} was answered with 503 Service Unavailable: waiting 0 s"]  # fmt: skip


def test_waiting_for_a_page_is_bounded() -> None:
    with HttpPeer() as peer:
        peer.answers = [(429, {"Retry-After": "301"}, {})]
        with pytest.raises(NotNow) as caught:
            read_all(source({"url": peer.url}))
        assert caught.value.after == timedelta(seconds=301)


async def test_a_rate_limit_spreads_requests_over_any_span() -> None:
    pace, began, turns = Pace(RateLimit(requests=2, per=0.2)), time.monotonic(), []

    async def take() -> None:
        await pace.turn()
        turns.append(time.monotonic() - began)

    await asyncio.gather(*(take() for _ in range(6)))
    assert [round(turn / 0.2) for turn in sorted(turns)] == [0, 0, 1, 1, 2, 2]


async def test_who_has_no_patience_is_told_when_its_turn_would_be() -> None:
    pace = Pace(RateLimit(requests=1, per=60))
    await pace.turn(1)
    with pytest.raises(NotNow) as caught:
        await pace.turn(1)
    assert caught.value.after is not None
    assert 59 < caught.value.after.total_seconds() <= 60


# --- what answers mean -----------------------------------------------------------------------------------------------


def answered(status: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> Answer:
    return Answer(status, headers or {}, body, "https://crm.example.org", "PUT")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, InvalidPayload) for status in (400, 404, 409, 410, 413, 415, 422)),
        (401, InvalidCredentials), (403, InvalidCredentials), (429, NotNow), (503, NotNow),
        (500, Unavailable), (502, Unavailable), (504, Unavailable), (408, Unavailable),
        (301, InvalidConfiguration), (308, InvalidConfiguration), (405, InvalidConfiguration), (418, ConnectorError),
    ],
)  # fmt: skip
def test_a_status_means_the_same_everywhere(status: int, kind: type[ConnectorError]) -> None:
    with pytest.raises(ConnectorError) as caught:
        judge_write(answered(status), [])
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_success_is_one(status: int) -> None:
    judge_write(answered(status), [])
    judge_read(answered(status))


def test_a_known_not_now_says_when() -> None:
    with pytest.raises(NotNow) as caught:
        judge_write(answered(429, {"Retry-After": "17"}), [])
    assert caught.value.after == timedelta(seconds=17)


RULES = [
    Rule(status=409, body="code == 'locked'", then="requeue", after=30, error_class="Locked"),
    Rule(status=[409, 412], then="accept"),
    Rule(body="error.transient", then="retry"),
    Rule(body="error", then="fail", error_class="Rejected"),
]


@pytest.mark.parametrize(
    ("status", "body", "kind", "error_class"),
    [
        (409, b'{"code": "locked"}', NotNow, "Locked"),
        (409, b'{"code": "exists"}', None, ""),
        (412, b"no JSON", None, ""),
        (200, b'{"error": {"transient": true}}', Unavailable, "Unavailable"),
        (200, b'{"error": {"message": "bad"}}', InvalidPayload, "Rejected"),
        (200, b'{"error": null}', None, ""),
        (500, b'{"error": {}}', Unavailable, "Unavailable"),
    ],
)
def test_the_first_rule_that_fits_decides(status: int, body: bytes, kind: Any, error_class: str) -> None:
    caught: Exception | None = None
    try:
        judge_write(answered(status, body=body), RULES)
    except ConnectorError as error:
        caught = error
    assert type(caught) is (kind or type(None))
    assert getattr(caught, "error_class", "") == error_class
    if isinstance(caught, NotNow):
        assert caught.after == timedelta(seconds=30)


def test_what_the_service_says_is_shown_without_secrets() -> None:
    with HttpPeer(token=TOKEN) as peer:
        config = {"url": peer.url + "/entities/{key}", "auth": {"type": "bearer", "secret": "t"}, "secrets": {"t": "t"}}
        with pytest.raises(InvalidCredentials) as caught:
            write(target(config, Access(LOCAL, {"t": "another-secret"})), ENTITY)
        assert '"error": "bad token Bearer ***"' in str(caught.value)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_known_entity_is_updated_where_it_is() -> None:
    with HttpPeer() as peer:
        config = {
            "url": f"{peer.url}/entities", "method": "POST", "external_id": "number",
            "update": {"url": f"{peer.url}/entities/{{external_id}}?via={{key}}"},
        }  # fmt: skip
        first, second = write(target(config), ENTITY, Entity("k1", {"id": "k1"}, "job-2", external_id="N/1"))
        assert (first.external_id, first.created) == ("N-k1", True)
        assert second.created
        assert [(request.method, request.path) for request in peer.requests] == [
            ("POST", "/entities"), ("PATCH", "/entities/N%2F1?via=k1"),
        ]  # fmt: skip
        assert [request.headers["Idempotency-Key"] for request in peer.requests] == ["job-1", "job-2"]


@pytest.mark.parametrize("key", ["", ".", ".."])
def test_a_key_that_means_a_folder_cannot_leave_its_place(key: str) -> None:
    with pytest.raises(InvalidPayload):
        fill("https://a/b/{key}", key=key)


def test_a_key_adds_neither_parameters_nor_placeholders() -> None:
    assert fill("https://a/{key}?x={external_id}", key="{external_id}?&#/", external_id="a&b") == (
        "https://a/%7Bexternal_id%7D%3F%26%23%2F?x=a%26b"
    )


def test_an_answer_that_is_no_json_is_no_failure_of_a_write() -> None:
    with HttpPeer() as peer:
        peer.answers = [(200, {}, b"thanks")]
        (written,) = write(target({"url": peer.url, "external_id": "id"}), ENTITY)
        assert (written.external_id, written.created) == (None, False)


# --- who does not answer, and where it does not go -------------------------------------------------------------------


def test_nobody_there_is_unavailable() -> None:
    with HttpPeer() as peer:
        url = peer.url
    with pytest.raises(Unavailable, match=r"it cannot be connected to: connection refused"):
        write(target({"url": f"{url}/secret-path"}), ENTITY)


def test_an_answer_that_takes_too_long_is_unavailable() -> None:
    with HttpPeer(seconds=2) as peer, pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
        write(target({"url": peer.url, "timeout": 0.2}), ENTITY)


def test_a_redirect_is_not_followed() -> None:
    with HttpPeer() as peer:
        peer.answers = [(307, {"Location": f"{peer.url}/elsewhere?token=abc"}, {})]
        with pytest.raises(InvalidConfiguration, match="redirects are not followed") as caught:
            write(target({"url": f"{peer.url}/secret-path"}), ENTITY)
        assert len(peer.requests) == 1
        assert "secret-path" not in str(caught.value)
        assert "elsewhere" not in str(caught.value)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    with HttpPeer() as peer:
        write(target({"url": f"{peer.url}/entities/{{key}}"}), ENTITY)
        assert len(peer.requests) == 1


def test_connections_are_kept_alive() -> None:
    ports: set[Any] = set()
    with HttpPeer() as peer:
        peer.on_request = lambda request: ports.add(request.headers.get("Connection", "keep-alive"))
        write(target({"url": f"{peer.url}/entities/{{key}}"}), ENTITY, ENTITY, ENTITY)
    assert ports == {"keep-alive"}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://169.254.169.254/", "http://[::1]/", "http://localhost/", "http://10.0.0.1/"]
)
def test_a_literal_address_in_the_operators_network_is_refused_at_creation_and_when_it_runs(url: str) -> None:
    config = parse(HttpTargetConfig, {"url": url})
    with pytest.raises(InvalidInput) as caught:
        config.check(Policy())
    assert caught.value.code == "target_blocked"
    with pytest.raises(InvalidConfiguration, match="JOBQ_POLICY__PROBE_NETWORKS"):
        write(HttpTarget(config, Access(Policy())), ENTITY)


class Names:
    """A resolver of the test's own."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = tuple(ip_address(address) for address in addresses)

    async def resolve(self, _name: str) -> tuple[Address, ...]:
        return self.addresses

    def waits_for_thread(self, _name: str) -> bool:
        return False

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "10.1.2.3"], ["::ffff:127.0.0.1"], ["169.254.169.254"]]
)
def test_a_name_that_leads_into_the_operators_network_is_refused(addresses: Sequence[str]) -> None:
    async def ask() -> None:
        session = Session(
            parse(HttpTargetConfig, {"url": "http://a.example"}), Access(Policy()), 10, resolver=Names(*addresses)
        )
        try:
            await session.ask("GET", "http://a.example/")
        finally:
            await session.close()

    with pytest.raises(InvalidConfiguration, match=r"to which a\.example resolves"):
        asyncio.run(ask())


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    async def ask(port: int) -> Answer:
        session = Session(
            parse(HttpTargetConfig, {"url": "http://a.example"}), Access(LOCAL), 10, resolver=Names("127.0.0.1")
        )
        try:
            return await session.ask("GET", f"http://a.example:{port}/entities/none")
        finally:
            await session.close()

    with HttpPeer() as peer:
        assert asyncio.run(ask(peer.port)).status == 404
        assert peer.requests[0].headers["Host"] == f"a.example:{peer.port}"


def test_a_long_answer_is_cut() -> None:
    async def ask(url: str) -> Answer:
        session = Session(parse(HttpTargetConfig, {"url": url}), Access(LOCAL), 1000)
        try:
            return await session.ask("GET", url)
        finally:
            await session.close()

    with HttpPeer() as peer:
        peer.answers = [(200, {}, b"x" * 1_000_000)]
        assert len(asyncio.run(ask(peer.url)).body) == 1001


@pytest.mark.parametrize("secret", ["two\nlines", "nul\x00"])
def test_a_secret_that_would_split_a_header_is_not_sent(secret: str) -> None:
    config = {
        "url": "http://127.0.0.1:1/",
        "auth": {"type": "header", "name": "X-Key", "secret": "t"},
        "secrets": {"t": "t"},
    }
    with pytest.raises(InvalidCredentials, match="line break") as caught:
        write(target(config, Access(LOCAL, {"t": secret})), ENTITY)
    assert secret not in str(caught.value)


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"auth": {"type": "bearer", "secret": "t"}}, "uses the secret 't', which `secrets` does not have"),
        ({"headers": {"Authorization": "Bearer x"}}, "carries a secret: use `auth`"),
        ({"headers": {"X-A": "a\r\nB: c"}}, "must not contain CR or LF"),
        ({"headers": {"Content-Length": "1"}}, "frames the message"),
        ({"records": "data["}, "is no JMESPath expression"),
        ({"pagination": {"type": "cursor"}}, "is required"),
        ({"since_param": "since"}, "go together"),
        ({"page_size": 10}, "needs `size_param`"),
        ({"entity_url": "https://a/{id}"}, "has the placeholder {id}; known: key"),
        ({"entity_url": "https://{key}.a/"}, "has a placeholder in its host"),
        ({"auth": {"type": "header", "name": "X-A: b", "secret": "t"}, "secrets": {"t": "t"}}, "pattern"),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_is_wrong(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(HttpSourceConfig, {"url": "https://a.example/", **config})
    assert message in str(caught.value)
