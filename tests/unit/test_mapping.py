"""Which entities are taken, and what is made of them."""

import json
import math
import random
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.errors import InvalidInput
from jobq.mapping import (
    MAX_ENTITY_BYTES,
    MAX_FIELDS,
    Conditions,
    Expression,
    Mapping,
    MappingError,
    content_hash,
    entity_key,
)
from jobq.validation import check_json

CUSTOMER = {
    "id": 42, "name": " Ada Lovelace ", "address": {"city": "London", "zip": 75001}, "active": True, "orders": 0,
    "tags": ["vip", "b2b"], "note": "", "joined": "2026-03-01T08:00:00+01:00", "balance": "12.50",
}  # fmt: skip


def mapped(rule: Any, **record: Any) -> Any:
    return Mapping({"field": rule}).apply(record)["field"]


def typed(kind: str, value: Any) -> Any:
    return mapped({"path": "value", "type": kind}, value=value)


def problem(rule: Any, **record: Any) -> str:
    with pytest.raises(MappingError) as caught:
        mapped(rule, **record)
    assert caught.value.field == "field"
    assert str(caught.value).startswith("'field': ")
    return caught.value.message


# --- expressions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("a b", "unexpected 'b' at character 3"),
        ("name.", "at character 6"),
        ("'open", "Unclosed ' delimiter at character 1"),
        ("a = b", "at character 3"),
        ("nope(@)", "no function nope()"),
        ("length(a, b)", "length() takes 1 argument(s), not 2"),
        ("merge()", "at least 1"),
        ("&name", "in the arguments of a function only"),
        ("(" * 3000, "too deeply"),
        ("a" * 5000, "at most 4096"),
        ("|".join(["[@, @]"] * 20), "repeats its input"),
        ("|".join(["[@, @][]"] * 20), "repeats its input"),
        ("[" + "9" * 5000 + "]", "at most 4096"),
    ],
    ids=range(14),
)
def test_what_is_no_expression_is_refused_with_its_place(text: str, part: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Expression(text, "/spec/key")
    assert (caught.value.code, caught.value.pointer) == ("invalid_expression", "/spec/key")
    assert part in caught.value.message


@given(st.text(alphabet="ab01.[]{}()*?@&|!<>=-,:'\"` \\n", max_size=24))
def test_whatever_the_text_it_is_an_expression_or_refused(text: str) -> None:
    try:
        Expression(text)
    except InvalidInput as error:
        str(error).encode()


def test_an_expression_with_many_fields_does_not_count_as_one_that_repeats() -> None:
    Expression("{" + ", ".join(f"f{n}: a.b{n}" for n in range(100)) + "}")
    Expression("orders[].{id: id, lines: lines[?quantity > `0`].{sku: sku, n: quantity}}")


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expressions", "passes"),
    [
        ([], True),
        (["active"], True),
        (["orders"], True),  # in JMESPath, 0 is true
        (["note"], False),
        (["nothing"], False),
        (["tags"], True),
        (["tags[?@ == 'none']"], False),
        (["address.nothing || active"], True),
        (["active", "address.city == 'Paris'"], False),
        (["active", "contains(tags, 'vip')", "orders < `1`"], True),
        (["`{}`"], False),
    ],
)
def test_all_conditions_must_hold_as_jmespath_sees_truth(expressions: list[str], passes: bool) -> None:
    assert Conditions(expressions).hold(CUSTOMER) is passes


def test_a_bad_condition_is_refused_where_it_stands() -> None:
    with pytest.raises(InvalidInput) as caught:
        Conditions(["a", "b["], "/spec/conditions")
    assert caught.value.pointer == "/spec/conditions/1"


def test_a_condition_that_does_not_fit_the_record_is_an_error_of_the_entity() -> None:
    with pytest.raises(MappingError, match=r"length\(\) takes string or array or object, not null"):
        Conditions(["length(nothing) > `3`"]).hold(CUSTOMER)
    with pytest.raises(MappingError, match="different types"):
        Conditions(["address.city > orders"]).hold(CUSTOMER)


# --- mappings --------------------------------------------------------------------------------------------------------


def test_a_mapping_makes_its_fields_in_their_order() -> None:
    payload = Mapping(
        {
            "ref": {"path": "id", "type": "string"}, "name": {"path": "name", "transform": ["strip", "upper"]},
            "city": "address.city", "zip": {"path": "address.zip", "type": "string"}, "region": {"value": "EU"},
            "since": {"path": "joined", "type": "date"}, "joined": {"path": "joined", "type": "datetime"},
            "balance": {"path": "balance", "type": "number"}, "first": "tags[0]", "nothing": "a.b.c",
            "tier": {"path": "tier", "default": "basic"}, "address": {"path": "address", "type": "json"},
        }
    ).apply(CUSTOMER)  # fmt: skip
    assert payload == {
        "ref": "42", "name": "ADA LOVELACE", "city": "London", "zip": "75001", "region": "EU", "since": "2026-03-01",
        "joined": "2026-03-01T07:00:00Z", "balance": 12.5, "first": "vip", "nothing": None, "tier": "basic",
        "address": {"city": "London", "zip": 75001},
    }  # fmt: skip
    assert list(payload)[:3] == ["ref", "name", "city"]


def test_without_a_mapping_the_record_stays_as_it_is() -> None:
    assert Mapping({}).apply(CUSTOMER) == CUSTOMER
    assert not Mapping({})


@pytest.mark.parametrize(
    ("kind", "given", "made"),
    [
        ("string", 7, "7"), ("string", 1.5, "1.5"), ("string", True, "true"), ("string", "", ""),
        ("integer", " -12 ", -12), ("integer", "12.00", 12), ("integer", 12.0, 12), ("integer", "", None),
        ("number", "1e3", 1000.0), ("number", "7", 7), ("number", ".5", 0.5), ("number", "  ", None),
        ("boolean", "Yes", True), ("boolean", 0, False), ("boolean", "off", False), ("boolean", "", None),
        ("date", "2026-03-01", "2026-03-01"), ("date", "2026-03-01T23:30:00-05:00", "2026-03-01"),
        ("date", "20260301", "2026-03-01"), ("datetime", "2026-03-01", "2026-03-01T00:00:00Z"),
        ("datetime", "2026-03-01 08:00:00.5", "2026-03-01T08:00:00.500000Z"),
        ("datetime", "2026-03-01t08:00:00z", "2026-03-01T08:00:00Z"), ("datetime", "", None),
        ("json", [1, {"a": None}], [1, {"a": None}]), ("json", "", ""), ("integer", None, None),
    ],
)  # fmt: skip
def test_a_value_is_converted_to_its_type(kind: str, given: Any, made: Any) -> None:
    found = typed(kind, given)
    assert (found, type(found)) == (made, type(made))


@pytest.mark.parametrize(
    ("kind", "given", "part"),
    [
        ("string", {"password": "hush"}, "an object is no text"), ("string", ["hush"], "a list is no text"),
        ("integer", "12.5", "'12.5' is no integer"), ("integer", True, "true is no integer"),
        ("integer", "1_000", "is no integer"), ("integer", "١٢", "is no integer"), ("integer", "9" * 5000, "…"),
        ("number", "NaN", "is no number"), ("number", "1e999", "is no number"), ("number", "0x1", "is no number"),
        ("boolean", "maybe", "is no boolean"), ("boolean", 2, "2 is no boolean"), ("boolean", 1.0, "is no boolean"),
        ("date", "2026-02-30", "is no date"), ("date", 5, "5 is no date"), ("datetime", "soon", "is no datetime"),
        ("datetime", "0001-01-01T00:00:00+14:00", "is no datetime"), ("datetime", 1772323200, "is no datetime"),
        ("string", "\ud800", "surrogate"), ("json", "a\x00b", "NUL"), ("json", math.inf, "infinity"),
        ("json", 10**5000, "digits"),
    ],
    ids=range(22),
)  # fmt: skip
def test_what_cannot_be_converted_names_field_and_value(kind: str, given: Any, part: str) -> None:
    told = problem({"path": "value", "type": kind}, value=given)
    assert part in told
    assert "hush" not in told
    assert len(told) < 200


def test_required_refuses_null_and_empty_text_after_the_default() -> None:
    assert problem({"path": "a.b", "required": True}) == "'field': is required, but 'a.b' is empty or not there."
    assert "required" in problem({"path": "a", "required": True, "transform": ["strip"]}, a="  ")
    assert mapped({"path": "a", "required": True, "default": 0}) == 0
    assert mapped({"path": "a", "required": True}, a=False) is False


def test_only_text_is_transformed() -> None:
    assert mapped({"path": "a", "type": "string", "transform": ["lower"]}, a=True) == "true"
    assert "no text" in problem({"path": "a", "transform": ["lower"]}, a=5)


@pytest.mark.parametrize(
    ("rules", "pointer", "part"),
    [
        ({"a": "b["}, "/m/a", "JMESPath"),
        ({"a": {"path": "b["}}, "/m/a/path", "JMESPath"),
        ({"x/y": {"path": "b["}}, "/m/x~1y/path", "JMESPath"),
        ({"a": {}}, "/m/a", "either"),
        ({"a": {"path": "b", "value": 1}}, "/m/a", "either"),
        ({"a": {"pth": "b"}}, "/m/a/pth", "no known field"),
        ({"a": {"path": 5}}, "/m/a/path", "string"),
        ({"a": {"path": "b", "type": "float"}}, "/m/a/type", "'integer'"),
        ({"a": {"path": "b", "type": "integer", "default": "none"}}, "/m/a", "no integer"),
        ({"a": {"value": "soon", "type": "date"}}, "/m/a", "no date"),
        ({"a": {"path": "b", "transform": ["title"]}}, "/m/a/transform/0", "'strip'"),
        ({"a": {"path": "b", "type": "integer", "transform": ["strip"]}}, "/m/a/transform", "text"),
        ({"a": {"path": "b", "required": "yes"}}, "/m/a/required", "boolean"),
        ({"a": 5}, "/m/a", "expression or by an object"),
        ({"": "b"}, "/m/", "name"),
        ({"a\x00": "b"}, "/m/a\x00", "NUL"),
        ({f"f{n}": "b" for n in range(MAX_FIELDS + 1)}, "/m", "at most"),
    ],
    ids=range(17),
)
def test_a_mapping_that_cannot_work_is_refused_where_it_is_wrong(
    rules: dict[str, Any], pointer: str, part: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Mapping(rules, "/m")
    assert caught.value.pointer == pointer
    assert part in caught.value.message


def test_an_entity_above_four_megabytes_is_refused_and_names_its_largest_field() -> None:
    mapping = Mapping({"id": "id", "body": "body"})
    mapping.apply({"id": 1, "body": "x" * (MAX_ENTITY_BYTES - 100)})
    with pytest.raises(MappingError, match="takes 5,000,018 bytes; at most 4,194,304") as caught:
        mapping.apply({"id": 1, "body": "x" * 5_000_000})
    assert caught.value.field == "body"
    assert len(str(caught.value)) < 200


def test_an_entity_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(MappingError, match="deeper than 32"):
        Mapping({"a": "deep"}).apply({"deep": deep})
    with pytest.raises(MappingError, match="deeper than 32"):
        Mapping({}).apply({"deep": json.loads("[" * 40 + "]" * 40)})
    Mapping({}).apply({"wide": [[] for _ in range(1000)]})


def test_what_connectors_must_not_deliver_fails_the_entity_only() -> None:
    with pytest.raises(MappingError, match="A set is no JSON value"):
        Mapping({}).apply({"a": {1}})
    with pytest.raises(MappingError, match="The record is a list, no object"):
        Mapping({"a": "b"}).apply([])  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), JSON, max_size=4)
HARD = [
    "a", "a.b", "a[0].b", "a[::2]", "a[::0]", "a.*", "a[]", "*.b[]", "a[?b > `1`]", "a < b", "length(a)", "sum(a)", "avg(a)",
    "max(a)", "sort(a)", "sort_by(a, &b)", "max_by(a, &b)", "map(&abs(b), a)", "join(',', a)", "keys(a)", "merge(a, b)",
    "to_number(a)", "to_string(@)", "reverse(a)", "not_null(a, b)", "floor(a)", "ceil(b)", "starts_with(a, b)", "type(@)",
    "!a && b || c", "{x: a, y: [b, c]}", "values(a)", "contains(a, b)", "to_array(a)", "abs(a)", "min_by(a, &@)", "@",
]  # fmt: skip


@given(
    record=RECORDS,
    path=st.sampled_from(HARD),
    kind=st.sampled_from(["string", "integer", "number", "boolean", "date", "datetime", "json"]),
    required=st.booleans(),
)
def test_whatever_the_record_it_is_mapped_to_json_or_fails_as_an_entity(
    record: Any, path: str, kind: str, required: bool
) -> None:
    mapping = Mapping({"f": {"path": path, "type": kind, "required": required}})
    for attempt in (mapping.apply, Conditions([path]).hold, lambda it: entity_key(it, Expression(path))):
        with suppress(MappingError):
            check_json(attempt(record))


# --- hashes and keys -------------------------------------------------------------------------------------------------


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(item, chance)) for key, item in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(item, chance) for item in value] if isinstance(value, list) else value


@given(record=RECORDS, chance=st.randoms())
def test_the_hash_does_not_depend_on_the_order_of_keys(record: Any, chance: random.Random) -> None:
    try:
        before = content_hash(record)
    except MappingError:
        return
    assert content_hash(shuffled(record, chance)) == before
    assert content_hash(json.loads(json.dumps(record))) == before
    assert content_hash({**record, "new": 1}) != before


def test_the_hash_is_what_it_was() -> None:
    """It is stored: another one would write every entity to every target again."""
    expected = "28f92a1872c8023cdfb20faaf090d7a6f2390fe8dffe2acc341fdd5b9e31ec79"
    assert content_hash({"name": "Zoë", "n": [1, 1.5, None, True]}) == expected


@pytest.mark.parametrize(
    ("record", "expression", "key"),
    [({"id": 7}, "id", "7"), ({"id": "x"}, "id", "x"), ({"a": {"b": 0}}, "a.b", "0"), ({"a": 1, "b": "x"}, "join('-', [to_string(a), b])", "1-x"),
     ({"id": "é" * 512}, "id", "é" * 512)],
)  # fmt: skip
def test_a_key_is_text(record: dict[str, Any], expression: str, key: str) -> None:
    assert entity_key(record, Expression(expression)) == key


@pytest.mark.parametrize(
    ("value", "part"),
    [(None, "empty or not there"), ("", "empty"), ("x" * 513, "has 513 characters"), ("💡" * 512, "1024 bytes"), ("a\x00", "NUL"),
     ("\ud800", "surrogate"), (True, "neither"), (1.5, "1.5 is neither text nor"), ({"a": 1}, "an object is neither"),
     ([1], "a list is neither"), (10**600, "too many digits")],
    ids=range(11),
)  # fmt: skip
def test_what_cannot_identify_an_entity_is_no_key(value: Any, part: str) -> None:
    with pytest.raises(MappingError, match=part) as caught:
        entity_key({"id": value}, Expression("id"))
    assert caught.value.field == "key"
    assert len(str(caught.value)) < 200


def test_a_hundred_thousand_entities_take_seconds() -> None:
    """Some 20 µs each; the bound leaves room for a busy machine."""
    mapping = Mapping(
        {"id": "id", "name": {"path": "name", "type": "string", "transform": ["strip"]}, "city": "address.city"}
    )
    conditions, key = Conditions(["active"]), Expression("id")
    began = time.process_time()
    for _ in range(10_000):
        assert conditions.hold(CUSTOMER)
        entity_key(CUSTOMER, key)
        content_hash(mapping.apply(CUSTOMER))
    assert time.process_time() - began < 1.5
