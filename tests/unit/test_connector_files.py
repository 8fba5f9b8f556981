"""CSV and JSON Lines: malformed lines cost one line, files appear whole, and nothing leaves its area."""

import asyncio
import gzip
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from pydantic import ValidationError

from jobq.connectors import Access, Entity, InvalidConfiguration, InvalidCredentials, InvalidPayload, Read
from jobq.errors import Forbidden, InvalidInput
from jobq.settings import Policy
from jobq.testing import Seen, read_all
from jobq.validation import parse
from workers.connectors import lines
from workers.connectors.area import Area, file_name
from workers.connectors.file_configs import CsvSourceConfig, CsvTargetConfig, JsonlSourceConfig, JsonlTargetConfig
from workers.connectors.file_sources import CsvSource, JsonlSource
from workers.connectors.file_targets import CsvTarget, JsonlTarget


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(Policy(areas=[str(tmp_path)]))


@pytest.fixture
def read_csv(tmp_path: Path, access: Access) -> Callable[..., Seen]:
    def read(content: bytes | str, request: Read | None = None, **config: Any) -> Seen:
        file = tmp_path / "file.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_all(CsvSource(parse(CsvSourceConfig, {"path": str(file), **config}), access), request)

    return read


def told(seen: Seen) -> list[str]:
    return [f"{problem.where.rpartition(', ')[2]}: {problem.message}" for problem in seen.problems]


# --- csv: what is malformed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "ids", "problems"),
    [
        ("id,name\n1,a\n2\n3,c\n", "13", ["line 3: it has 1 fields, the header has 2"]),
        ("id,name\n1,a\n2,b,c\n3,c\n", "13", ["line 3: it has 3 fields, the header has 2"]),
        ('id,name\n1,"a\n2,b\n3,c\n', "23", ["line 2: a quote is not closed"]),
        ('id,name\n1,"a\n2,b\n3,"c\n4,d\n', "24", ["line 2: text follows a closing quote", "line 4: a quote is not closed"]),
        ('id,name\n1,"a"x\n2,b\n', "2", ["line 2: text follows a closing quote"]),
        (b"id,name\n1,\xff\n2,b\n", "2", ["line 2: byte 3 of the line is not utf-8"]),
        ('id,name\n1,5" pipe\n2,b\n', "12", []),
        ('id,name\r\n1,"two\r\nlines"\r\n\r\n2,b', "12", []),
        ("\N{BYTE ORDER MARK}id,name\n1,a\n", "1", []),
        ("", "", []),
        ("id,name\n", "", []),
        ("id,id\n1,2\n", "", ["line 1: the header cannot be used, so the file is passed over: the column 'id' comes twice"]),
        ("id,\n1,2\n", "", ["line 1: the header cannot be used, so the file is passed over: a column has no name"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_malformed_record_costs_one_line(
    content: bytes | str, ids: str, problems: list[str], batch_size: int, read_csv: Callable[..., Seen]
) -> None:
    seen = read_csv(content, Read(batch_size=batch_size))
    assert [record["id"] for record in seen.records] == list(ids)
    assert told(seen) == problems


def test_a_problem_names_the_file_and_the_line(read_csv: Callable[..., Seen], tmp_path: Path) -> None:
    (problem,) = read_csv("id,name\n1\n").problems
    assert problem.where == f"{tmp_path}/file.csv, line 2"


def test_a_line_of_many_megabytes_is_passed_over(read_csv: Callable[..., Seen]) -> None:
    seen = read_csv("id,name\n1,a\n2," + "x" * (5 * 1024 * 1024) + "\n3,c\n")
    assert [record["id"] for record in seen.records] == ["1", "3"]
    assert told(seen) == ["line 3: the line is longer than 1024 KiB"]


def test_a_quote_that_is_never_closed_does_not_take_the_rest_with_it(
    read_csv: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD", 2048)
    seen = read_csv('id,name\n1,"a\n' + "".join(f"{number},b\n" for number in range(2, 2000)))
    assert [record["id"] for record in seen.records] == [str(number) for number in range(2, 2000)]
    assert told(seen) == ["line 2: a quote is not closed within 2 KiB"]


def test_problems_do_not_come_again_behind_a_cursor(read_csv: Callable[..., Seen]) -> None:
    content = 'id,name\n1\n2,b\n3,"c\n4,d\n'
    whole = read_csv(content, Read(batch_size=1))
    for number, batch in enumerate(whole.batches):
        rest = read_csv_again(read_csv, batch.cursor)
        assert rest.records == [record for later in whole.batches[number + 1 :] for record in later.records]
        assert rest.problems == [problem for later in whole.batches[number + 1 :] for problem in later.problems]


def read_csv_again(read_csv: Callable[..., Seen], cursor: Any) -> Seen:
    path = Path(cursor["file"])
    source = CsvSource(parse(CsvSourceConfig, {"path": str(path)}), Access(Policy(areas=[str(path.parent)])))
    return read_all(source, Read(cursor=cursor, batch_size=1))


def test_columns_delimiter_and_encoding_can_be_given(read_csv: Callable[..., Seen]) -> None:
    seen = read_csv("1;Zo\xe9\n".encode("latin-1"), columns=["id", "name"], delimiter=";", encoding="latin-1")
    assert seen.records == [{"id": "1", "name": "Zo\xe9"}]


def test_a_file_that_changed_behind_a_cursor_is_read_from_its_start(tmp_path: Path, access: Access) -> None:
    file = tmp_path / "file.csv"
    file.write_text("id\n1\n2\n3\n")
    config = parse(CsvSourceConfig, {"path": str(file)})
    cursor = read_all(CsvSource(config, access), Read(batch_size=2)).batches[0].cursor
    file.write_text("id\n7\n8\n")
    assert [record["id"] for record in read_all(CsvSource(config, access), Read(cursor=cursor)).records] == ["7", "8"]


def test_compressed_files_are_unpacked(tmp_path: Path, access: Access) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n1\n2\n3\n"))
    config = parse(CsvSourceConfig, {"path": f"{tmp_path}/*.csv.gz"})
    whole = read_all(CsvSource(config, access), Read(batch_size=1))
    assert [record["id"] for record in whole.records] == ["1", "2", "3"]
    rest = read_all(CsvSource(config, access), Read(cursor=whole.batches[0].cursor))
    assert [record["id"] for record in rest.records] == ["2", "3"]


# --- jsonl -----------------------------------------------------------------------------------------------------------


def test_a_malformed_json_line_costs_one_line(tmp_path: Path, access: Access) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"id": 1}\n{"id": \n[2]\n\n{"id": NaN}\n{"id": 1e999}\n{"id": "\\ud800"}\n{"id": "\xff"}\n'
        + b"[" * 200_000 + b'\n{"id": 3}'
    )  # fmt: skip
    seen = read_all(JsonlSource(parse(JsonlSourceConfig, {"path": f"{tmp_path}/a.jsonl"}), access))
    assert seen.records == [{"id": 1}, {"id": 3}]
    assert [line.partition(":")[0] for line in told(seen)] == [f"line {number}" for number in (2, 3, 5, 6, 7, 8, 9)]


def test_files_that_were_seen_are_read_again_only_when_they_change(tmp_path: Path, access: Access) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name}))
    source = lambda: JsonlSource(parse(JsonlSourceConfig, {"path": f"{tmp_path}/*.jsonl"}), access)  # noqa: E731
    state = read_all(source()).state
    (tmp_path / "b.jsonl").write_text(json.dumps({"id": "b2"}))
    os.utime(tmp_path / "b.jsonl", (1, 1))  # older than all others: it has changed all the same
    (tmp_path / "c.jsonl").unlink()
    after = read_all(source(), Read(state=state))
    assert after.records == [{"id": "b2"}]
    assert sorted(Path(name).name for name in after.state) == ["a.jsonl", "b.jsonl"]


# --- where it does not go --------------------------------------------------------------------------------------------


def test_a_symbolic_link_does_not_lead_out_of_an_area(tmp_path: Path) -> None:
    area, outside = tmp_path / "area", tmp_path / "outside"
    area.mkdir()
    outside.mkdir()
    (outside / "secret.csv").write_text("id\n1\n")
    (area / "link.csv").symlink_to(outside / "secret.csv")
    (area / "folder").symlink_to(outside)
    access = Access(Policy(areas=[str(area)]))
    for path in ("link.csv", "*.csv", "folder/secret.csv", "folder/*", "../outside/secret.csv"):
        with pytest.raises(InvalidConfiguration, match="JOBQ_POLICY__AREAS"):
            read_all(CsvSource(parse(CsvSourceConfig, {"path": f"{area}/{path}"}), access))


def test_without_areas_the_disk_is_closed() -> None:
    config = parse(CsvSourceConfig, {"path": "/etc/passwd"})
    with pytest.raises(Forbidden) as caught:
        config.check(Policy())
    assert caught.value.code == "area_not_allowed"
    with pytest.raises(InvalidConfiguration, match="lies in no area"):
        read_all(CsvSource(config, Access(Policy())))


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("/data/in", True), ("/data/in/a/b.csv", True), ("file:///data/in/a", True), ("local:///data/in/a", True),
        ("/data/in/../secret", False), ("/data/input", False), ("/data", False), ("data/in", False), ("", False),
        ("/data/in/a\x00", False),
        ("s3://bucket/in", True), ("S3://bucket/in/x.csv", True), ("s3://bucket/in/50%.csv", True),
        ("s3://bucket/inner", False), ("s3://bucket/in/../out", False), ("s3://bucket/in//x", False),
        ("s3://other/in", False), ("gs://bucket/in", False), ("s3://bucket/in::file:///etc", False),
        ("https://files.example/a/x", True), ("https://files.example/a/%2e%2e/b", False),
        ("https://user@files.example/a", False), ("https://files.example.evil/a", False),
    ],
)  # fmt: skip
def test_a_policy_allows_what_lies_in_its_areas(url: str, is_allowed: bool) -> None:
    policy = Policy(areas=["/data/in/", "s3://bucket/in", "https://files.example/a/"])
    assert policy.allows_area(url) is is_allowed


@pytest.mark.parametrize("area", ["data/in", "", "zip://a::/b", "s3://", "s3://a/../b"])
def test_an_area_that_could_be_read_in_two_ways_is_refused(area: str) -> None:
    with pytest.raises(ValidationError):
        Policy(areas=[area])


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/x.csv", "s3fs"), ("gs://bucket/x.csv", "gcsfs")])
def test_a_store_whose_package_is_missing_names_it(url: str, package: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(InvalidConfiguration, match=package):
        read_all(CsvSource(parse(CsvSourceConfig, {"path": url}), Access(Policy(areas=[url.rpartition("/")[0]]))))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="nope"):
        read_all(CsvSource(parse(CsvSourceConfig, {"path": "nope://a/x.csv"}), Access(Policy(areas=["nope://a"]))))


def test_credentials_of_a_store_must_be_there() -> None:
    config = {"path": "memory://a/x.csv", "storage": {"key": "id"}, "secrets": {"id": "s"}}
    with pytest.raises(InvalidCredentials, match="'id' was not given"):
        read_all(CsvSource(parse(CsvSourceConfig, config), Access(Policy(areas=["memory://a"]))))


@pytest.mark.parametrize("config", [{"encoding": "utf-16"}, {"encoding": "no"}, {"delimiter": "\n"}, {"delimiter": '"'},
                                    {"storage": {"endpoint_url": "x"}}])  # fmt: skip
def test_a_wrong_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        parse(CsvSourceConfig, {"path": "/a.csv", **config})


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(InvalidInput, match="neither an absolute path nor a URL"):
        parse(CsvSourceConfig, {"path": "relative.csv"}).check(Policy())


# --- writing ---------------------------------------------------------------------------------------------------------


def test_names_are_different_for_every_key_and_one_folder_deep() -> None:
    keys = ["a", "A", "..", ".", "../x", "a/b", "a%2Fb", "a\\b", "\x00", " ", "x" * 300, "x" * 299, "x" * 146 + "+", "é", "~",
            "\ud800"]  # fmt: skip
    names = [file_name(key, ".json") for key in keys]
    assert len(set(names)) == len(keys)
    assert all("/" not in name and "\x00" not in name and not name.startswith(".") for name in names)
    assert all(len(name.encode()) < 200 for name in names)
    with pytest.raises(InvalidPayload):
        file_name("", ".json")


async def records(*batches: Sequence[dict[str, Any]]) -> AsyncIterator[Sequence[dict[str, Any]]]:
    for batch in batches:
        yield batch


def csv_target(folder: Path, access: Access, **config: Any) -> CsvTarget:
    return CsvTarget(parse(CsvTargetConfig, {"area": str(folder), **config}), access)


async def test_columns_come_from_the_first_batch(tmp_path: Path, access: Access) -> None:
    target = csv_target(tmp_path, access)
    await target.write_file(
        "d", records([{"a": 1, "b": None}, {"c": [1, {"x": True}], "a": 'x,"y"\r\n'}], [{"b": False}])
    )
    assert (tmp_path / "d.csv").read_bytes() == (b'a,b,c\r\n1,,\r\n"x,""y""\r\n",,"[1,{""x"":true}]"\r\n,false,\r\n')
    with pytest.raises(InvalidConfiguration, match="'z' is not among the columns of the first batch"):
        await target.write_file("d", records([{"a": 1}], [{"z": 1}]))
    assert (tmp_path / "d.csv").read_bytes().startswith(b"a,b,c")
    await target.close()


async def test_configured_columns_choose_and_order(tmp_path: Path, access: Access) -> None:
    target = csv_target(tmp_path, access, columns=["b", "a"], delimiter="\t")
    await target.write_file("d", records([{"a": 1, "z": 3}], [{"b": 2}]))
    await target.write_file("empty", records())
    await target.close()
    assert (tmp_path / "d.csv").read_bytes() == b"b\ta\r\n\t1\r\n2\t\r\n"
    assert (tmp_path / "empty.csv").read_bytes() == b"b\ta\r\n"


@pytest.mark.parametrize("value", ["\ud800", float("nan"), object()])
async def test_what_cannot_be_written_is_the_payloads_fault(value: Any, tmp_path: Path, access: Access) -> None:
    target = JsonlTarget(parse(JsonlTargetConfig, {"area": str(tmp_path / "new")}), access)
    with pytest.raises(InvalidPayload):
        await target.write(Entity("k", {"a": value}, "job"))
    await target.close()
    assert not (tmp_path / "new").exists()


def test_readers_never_see_half_a_file(tmp_path: Path, access: Access) -> None:
    """One writes the same entity again and again, another reads it: each time it is whole."""
    target = JsonlTarget(parse(JsonlTargetConfig, {"area": str(tmp_path)}), access)
    file, done, seen = tmp_path / "k.json", threading.Event(), set()

    async def write() -> None:
        for number in range(100):
            await target.write(Entity("k", {"text": f"{number}" * 100_000}, "job"))
        await target.close()

    def look() -> None:
        while not done.is_set():
            if file.exists():
                text = json.loads(file.read_text())["text"]
                assert len(text) in {100_000, 200_000}
                seen.add(text[:2])

    reader = threading.Thread(target=look)
    reader.start()
    try:
        asyncio.run(write())
    finally:
        done.set()
        reader.join()
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["k.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, access: Access) -> None:
    area = Area(str(tmp_path), parse(JsonlTargetConfig, {"area": str(tmp_path)}), access)
    area.write("a.json", lambda handle: handle.write(b"before") and None)

    def half(handle: IO[bytes]) -> None:
        handle.write(b"aft")
        raise MemoryError

    with pytest.raises(MemoryError):
        area.write("a.json", half)
    assert (tmp_path / "a.json").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


async def test_an_object_store_takes_whole_files_only() -> None:
    """fsspec's store in memory stands for S3 and the others: the same calls, the same paths."""
    access = Access(Policy(areas=["memory://bucket/out"]))
    target = csv_target(Path("memory://bucket/out"), access, area="memory://bucket/out")
    first = await target.write(Entity("../k", {"a": 1}, "job"))
    second = await target.write(Entity("../k", {"a": 2}, "job"))
    whole = await target.write_file("d", records([{"a": 1}], [{"a": 2}]))
    await target.close()
    assert (first.created, second.created) == (True, False)
    assert first.external_id == second.external_id == "memory://bucket/out/%2E.%2Fk.csv"
    assert whole.external_id == "memory://bucket/out/d.csv"
    source = CsvSource(parse(CsvSourceConfig, {"path": "memory://bucket/out/*.csv"}), access)
    read = [batch async for batch in source.read(Read())]
    await source.close()
    assert [dict(record) for batch in read for record in batch.records] == [{"a": "2"}, {"a": "1"}, {"a": "2"}]
