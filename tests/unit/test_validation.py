from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobq.errors import Forbidden, InvalidInput, JobQError
from jobq.validation import MAX_BYTES, MAX_DEPTH, check_json, located, parse, parse_json


def refused(call: Callable[[], object]) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        call()
    assert len(str(raised.value)) < 1_000
    str(raised.value).encode()  # whatever came in, the answer can be sent
    return raised.value


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nul", "[1,]", "{'a': 1}", "01", "+1", '"\t"', '"\x00"', "[1] 2", "\ufeff[]", "// comment\n1", '"\\x"',
        b"\xff\xfe[\x00]\x00", b'"\xff"', "\ud800", '"\ud800"', "٣",
        "NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "-1e999", "9" * 5000,
        '{"a": 1, "a": 2}', '[{"b": {"a": 1, "\\u0061": 2}}]',
        '"\\ud800"', '{"\\udfff": 1}', '["\\ud83d \\ude00"]',
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_what_is_no_json_or_what_readers_disagree_about_is_invalid_json(text: str | bytes) -> None:
    error = refused(lambda: parse_json(text))
    assert (error.code, error.http_status) == ("invalid_json", 400)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_is_read_to_a_depth_of_32(opening: str) -> None:
    middle, closing = ("", "]") if opening == "[" else ("1", "}")

    def nested(depth: int) -> str:
        return opening * depth + middle + closing * depth

    assert parse_json(nested(MAX_DEPTH)) is not None
    assert refused(lambda: parse_json(nested(MAX_DEPTH + 1))).code == "invalid_json"
    assert refused(lambda: parse_json(nested(20_000))).code == "invalid_json"
    assert refused(lambda: parse_json("[" * 200_000)).code == "invalid_json"


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert parse_json("[" + ",".join(["[]"] * 100) + "]") == [[]] * 100
    assert parse_json(json.dumps("[" * 100)) == "[" * 100


def test_more_than_256_kib_is_too_large_counted_in_bytes() -> None:
    fits = json.dumps("x" * (MAX_BYTES - 2))
    assert len(parse_json(fits)) == MAX_BYTES - 2
    error = refused(lambda: parse_json(fits + " "))
    assert (error.code, error.http_status) == ("payload_too_large", 413)
    assert (
        refused(lambda: parse_json(json.dumps("é" * (MAX_BYTES // 2), ensure_ascii=False))).code == "payload_too_large"
    )
    assert refused(lambda: parse_json("[1, 2]", max_bytes=5)).code == "payload_too_large"


def test_a_duplicate_key_is_named() -> None:
    assert "'a' comes twice" in refused(lambda: parse_json('{"b": 1, "a": 1, "a": 1}')).message


def test_a_syntax_error_names_line_and_column() -> None:
    assert "(line 2, column 1)" in refused(lambda: parse_json('{"a": 1,\n}')).message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
@settings(deadline=None)
def test_good_json_round_trips_and_can_be_stored(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode(), check_json(value)):
        assert parse_json(text) == value


@given(st.binary(max_size=60) | st.text(max_size=60))
@settings(deadline=None)
def test_whatever_bytes_come_they_are_read_or_refused(text: bytes | str) -> None:
    try:
        parse_json(text)
    except InvalidInput as error:
        assert error.code == "invalid_json"  # noqa: PT017  either way is right


def test_a_nul_passes_the_reader_because_fields_have_better_codes_for_it() -> None:
    assert parse_json('{"env": {"A\\u0000": "1"}}') == {"env": {"A\x00": "1"}}


# --- values that are stored ------------------------------------------------------------------------------------------


class Colour(StrEnum):
    RED = "red"


def test_a_value_comes_back_as_compact_json_text() -> None:
    assert check_json({"a": [1, None, Colour.RED, ("é", True, 0.5)]}) == '{"a":[1,null,"red",["é",true,0.5]]}'


@pytest.mark.parametrize(
    ("value", "code", "pointer"),
    [
        ({"a": ["x\x00"]}, "validation_error", "/state/a/0"),
        ({"a": {"b\x00": 1}}, "validation_error", "/state/a"),
        ({"a~b": {"c/d": "\x00"}}, "validation_error", "/state/a~0b/c~1d"),
        ({1: "x"}, "validation_error", "/state"),
        ({"a": {1, 2}}, "validation_error", "/state/a"),
        ({"a": b"x"}, "validation_error", "/state/a"),
        ([UUID(int=1)], "validation_error", "/state/0"),
        ([0, float("nan")], "invalid_json", "/state/1"),
        (float("-inf"), "invalid_json", "/state"),
        ("\ud800", "invalid_json", "/state"),
        ({"\ud800": 1}, "invalid_json", "/state"),
        (10**5000, "validation_error", "/state"),
        ("x" * MAX_BYTES, "payload_too_large", "/state"),
    ],
    ids=range(13),
)
def test_what_cannot_be_stored_is_refused_where_it_is(value: object, code: str, pointer: str) -> None:
    error = refused(lambda: check_json(value, pointer="/state"))
    assert (error.code, error.pointer) == (code, pointer)


def test_a_value_that_holds_itself_or_is_too_deep_is_invalid_json() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert refused(lambda: check_json(endless)).code == "invalid_json"
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    assert check_json(deep)
    assert refused(lambda: check_json([deep])).code == "invalid_json"


# --- models ----------------------------------------------------------------------------------------------------------


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    size: int = Field(1, ge=1)
    tags: list[str] = []
    either: int | str | None = None


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    inner: Inner = Inner()
    by_key: dict[str, Inner] = {}
    secret: str = ""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if name == "forbidden":
            raise Forbidden("Not this one.", code="forbidden_option", pointer="/name")
        if name == "invalid":
            raise InvalidInput("Never this one.", code="invalid_image", pointer="/name")
        if name == "asserted":
            raise AssertionError("names are not asserted")
        return name

    @model_validator(mode="after")
    def _whole(self) -> Outer:
        if self.name == "whole":
            raise ValueError("the parts do not fit")
        if self.name == "late":
            raise InvalidInput("Too late.", code="invalid_timeout", pointer="/timeout")
        return self


def test_good_data_becomes_an_instance() -> None:
    assert parse(Outer, {"name": "a", "inner": {"size": 2}}) == Outer(name="a", inner=Inner(size=2))


@pytest.mark.parametrize(
    ("data", "pointer", "message"),
    [
        ({}, "/spec/name", "'name' is required."),
        ({"name": 5}, "/spec/name", "'name': input should be a valid string."),
        ({"name": "a", "inner": 5}, "/spec/inner", "'inner': should be an object."),
        ({"name": "a", "inner": {"size": 0}}, "/spec/inner/size", "'size': input should be greater than or equal to 1."),
        ({"name": "a", "inner": {"size": True}}, "/spec/inner/size", "'size': input should be a valid integer."),
        ({"name": "a", "inner": {"tags": ["x", 5]}}, "/spec/inner/tags/1", "'tags/1': input should be a valid string."),
        ({"name": "a", "by_key": {"k/1": {"siz": 1}}}, "/spec/by_key/k~11/siz", "'siz' is no known field."),
        ({"name": "a", "inner": {"either": []}}, "/spec/inner/either", "'either': input should be a valid integer (and 1 more)."),
        ({"name": "a", "nmae": 1, "inner": 5}, "/spec/inner", "'inner': should be an object (and 1 more)."),
        ({"name": "asserted"}, "/spec/name", "'name': names are not asserted."),
        ({"name": "whole"}, "/spec", "The input is wrong: the parts do not fit."),
        ([], "/spec", "The input is wrong: should be an object."),
        (None, "/spec", "The input is wrong: should be an object."),
    ],
)  # fmt: skip
def test_wrong_data_gives_one_sentence_and_a_json_pointer(data: object, pointer: str, message: str) -> None:
    error = refused(lambda: parse(Outer, data, "/spec"))
    assert (error.code, error.http_status) == ("validation_error", 422)
    assert (error.pointer, error.message) == (pointer, message)


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("forbidden", Forbidden, "forbidden_option"),
        ("invalid", InvalidInput, "invalid_image"),
        ("late", InvalidInput, "invalid_timeout"),
    ],
)
def test_errors_of_our_own_pass_through_pydantic_untouched(name: str, kind: type[JobQError], code: str) -> None:
    with pytest.raises(kind) as raised:
        parse(Outer, {"name": name})
    assert raised.value.code == code


def test_an_unknown_field_is_answered_with_the_one_it_resembles_or_with_all() -> None:
    assert refused(lambda: parse(Outer, {"name": "a", "secert": "x"})).hint == "Did you mean 'secret'?"
    assert refused(lambda: parse(Outer, {"name": "a", "zzz": "x"})).hint == "Known fields: by_key, inner, name, secret."


def test_messages_do_not_repeat_the_input() -> None:
    error = refused(lambda: parse(Outer, {"name": "a", "secret": ["hunter2"]}))
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("name", ["\ud800", "\x00", "\n", "x" * 100_000, "/", ""])
def test_whatever_an_unknown_field_is_called_the_answer_can_be_sent(name: str) -> None:
    assert refused(lambda: parse(Outer, {"name": "a", name: 1})).code == "validation_error"
    assert refused(lambda: parse(Outer, {"name": "a", "by_key": {name: {name: 1}}})).code == "validation_error"


def test_an_error_about_a_part_can_be_told_about_the_whole() -> None:
    part = Forbidden("Not this.", code="image_not_allowed", hint="Ask.", pointer="/spec/image")
    whole = located(part, "Workflow 3", "/workflows/2")
    assert isinstance(whole, Forbidden)
    assert str(whole) == "Workflow 3: Not this. (at /workflows/2/spec/image) Ask."
    assert (whole.code, part.pointer) == ("image_not_allowed", "/spec/image")
