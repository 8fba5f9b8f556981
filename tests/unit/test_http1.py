"""HTTP/1.1 without I/O: what is sent, and how an answer is read, however its bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.net import parse_url
from jobq.outbound.http1 import MAX_BODY, MAX_CHUNKS, MAX_HEAD, Answer, IncompleteAnswer, InvalidAnswer, Request

TARGET = parse_url("http://example.com:8080/health?deep=1")


def read(data: bytes, *, method: str = "GET", cuts: tuple[int, ...] = (), end: bool = True) -> Answer:
    """Feed the bytes in the pieces that the cuts make, then the end of the connection."""
    answer = Answer(Request(TARGET, method))
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for begin, stop in pairwise(edges):
        if begin < stop and answer.feed(data[begin:stop]):
            return answer
    assert end, "the answer is not complete"
    assert answer.feed(b"")
    return answer


def test_a_request_asks_for_an_uncompressed_answer_on_a_connection_of_its_own() -> None:
    assert Request(TARGET).encode().split(b"\r\n") == [
        b"GET /health?deep=1 HTTP/1.1",
        b"Host: example.com:8080",
        b"user-agent: jobq",
        b"accept: */*",
        b"accept-encoding: identity",
        b"Connection: close",
        b"",
        b"",
    ]


def test_the_caller_s_headers_replace_the_defaults_but_never_the_framing() -> None:
    headers = {
        "User-Agent": "me",
        "HOST": "virtual",
        "Content-Length": "9",
        "Transfer-Encoding": "chunked",
        "X": "ü",
    }
    sent = Request(TARGET, headers=headers).encode().decode().lower()
    assert "user-agent: me\r\n" in sent
    assert "host: virtual\r\n" in sent
    assert "x: ü\r\n" in sent
    assert "jobq" not in sent
    assert "example.com" not in sent
    assert "content-length" not in sent
    assert "transfer-encoding" not in sent


def test_an_answer_to_a_request_with_secrets_is_not_quoted_because_servers_echo() -> None:
    for echo in (b"s3cr3t-token\r\n\r\n", b"HTTP/s3cr3t-token\r\n\r\n"):
        with pytest.raises(InvalidAnswer, match="it begins with") as caught:
            Answer(Request(TARGET, confidential=True)).feed(echo)
        assert "3cr3t" not in str(caught.value)


def test_a_body_is_sent_with_its_length() -> None:
    sent = Request(TARGET, "POST", body=b"{}").encode()
    assert b"\r\nContent-Length: 2\r\n" in sent
    assert sent.endswith(b"\r\n\r\n{}")


ANSWERS = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": b"hello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello": b"hello",
    b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello": b"hello",
    b"HTTP/1.0 200 OK\n\nhello": b"hello",
    b"HTTP/1.1 200 OK\r\n\r\nhello": b"hello",
    b"HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 5\r\n\r\nhello": b"hello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello": b"hello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n": b"hello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 1\r\n\r\n005\nhello\n0\n\n": b"hello",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n": b"",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 500 Next\r\n\r\n": b"hello",
}


@given(st.sampled_from(list(ANSWERS)), st.lists(st.integers(0, 500), max_size=12))
def test_an_answer_reads_the_same_however_its_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    answer = read(data, cuts=tuple(cuts))
    assert (bytes(answer.body), answer.truncated) == (ANSWERS[data], False)


def test_an_answer_to_head_has_no_body() -> None:
    answer = read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", method="HEAD", end=False)
    assert (answer.status, bytes(answer.body)) == (200, b"")


def test_repeated_headers_are_joined() -> None:
    assert read(b"HTTP/1.1 200 OK\r\nA: 1\r\na:2\r\n\r\n").headers == {"a": "1, 2"}


@pytest.mark.parametrize(
    "head",
    [
        f"Content-Length: {MAX_BODY + 1}\r\n\r\n",
        "\r\n",
        f"Transfer-Encoding: chunked\r\n\r\n{MAX_BODY + 1:x}\r\n",
    ],
)
def test_a_longer_body_is_read_up_to_the_limit_only(head: str) -> None:
    answer = read(b"HTTP/1.1 200 OK\r\n" + head.encode() + b"x" * (MAX_BODY + 1), end=False)
    assert (len(answer.body), answer.truncated) == (MAX_BODY, True)


def test_a_body_of_just_the_limit_is_whole() -> None:
    answer = read(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_BODY + b"x" * MAX_BODY)
    assert (len(answer.body), answer.truncated) == (MAX_BODY, False)


def test_a_body_that_nobody_looks_at_is_read_but_not_kept() -> None:
    answer = Answer(Request(TARGET, keep_body=False))
    assert answer.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert (answer.size, bytes(answer.body)) == (5, b"")


def test_a_flood_of_tiny_chunks_ends() -> None:
    answer = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * MAX_CHUNKS, end=False)
    assert (len(answer.body), answer.truncated) == (MAX_CHUNKS, True)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "begins with b'SSH-"),
        (b"220 mail.example ESMTP\r\n", "begins with"),
        (b"\x15\x03\x01\x00\x02\x02F", "begins with"),
        (b"HTTP/2 200 OK\r\n\r\n", "begins with"),
        (b"HTTP/1.1 99 Low\r\n\r\n", "begins with"),
        (b"HTTP/1.1 2000 High\r\n\r\n", "begins with"),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", "no colon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000, "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n", "longer than its size"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n", "headers exceed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_HEAD, "headers exceed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "interim"),
    ],
)
def test_what_is_no_http_is_told(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidAnswer, match=problem):
        read(data, cuts=(7, 100))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent", "in the middle of the headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "after 5 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "after 3 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "after 5 bytes"),
    ],
)
def test_a_connection_that_ends_too_early_is_told(data: bytes, where: str) -> None:
    with pytest.raises(IncompleteAnswer, match=where):
        read(data)


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
def test_no_bytes_break_the_reader(data: bytes, cuts: list[int]) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            read(prefix + data, cuts=tuple(cuts))
        except (InvalidAnswer, IncompleteAnswer) as error:
            assert str(error).isprintable()  # noqa: PT017 - both ends are fine, but only these two
