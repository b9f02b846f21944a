"""ACEBench's scorer: every rule, and every quirk beside its mending. Rows and texts are written for these tests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.toolcall import AceTarget, Call, match_acebench
from looptool_jax.toolcall.acebench_match import (
    match_official_text,
    official_calls,
    official_text,
    tool_name,
    write_calls,
)

BOTH = {"official": True, "fixed": True}
NEITHER = {"official": False, "fixed": False}
MENDED = {"official": False, "fixed": True}
REFUSED = {"official": True, "fixed": False}


def document(name: str = "f", required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    properties = {key: {"type": value} if isinstance(value, str) else value for key, value in properties.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": "", "parameters": parameters}


def blocks(*calls: tuple[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls
    )


def verdicts(text: str, target: AceTarget) -> dict[str, bool]:
    return {mode: match_acebench(text, target, mode).ok for mode in ("official", "fixed")}


def of_value(value: Any, label: Any, kind: str | dict[str, Any], dialogue: bool = False) -> dict[str, bool]:
    """The verdicts of one argument."""
    target = AceTarget("calls", (document(x=kind),), ({"f": {"x": label}},), dialogue)
    return verdicts(blocks(("f", {"x": value})), target)


def of_calls(calls: list[tuple[str, dict]], label: dict[str, Any], *functions: dict[str, Any]) -> dict[str, bool]:
    return verdicts(blocks(*calls), AceTarget("calls", functions, (label,)))


LIST = {"type": "array", "items": {"type": "string"}}
NUMBERS = {"type": "array", "items": {"type": "integer"}}
OBJECTS = {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}}
ENUM = {"type": "string", "enum": ["A", "A plus"]}


@pytest.mark.parametrize(
    ("value", "label", "kind", "wanted"),
    [
        (3, 3, "integer", BOTH),
        (4, 3, "integer", REFUSED),  # numbers are never compared
        (4.5, 39.9, "number", REFUSED),
        (True, False, "boolean", REFUSED),
        (1, True, "boolean", REFUSED),  # 1 == True
        (0, True, "boolean", NEITHER),
        (3.0, 3, "integer", BOTH),
        ("3", 3, "integer", NEITHER),
        ("3", 3, "string", BOTH),
        ("4", 3, "string", REFUSED),  # nor is anything whose label has another type than is documented
        (3, "3", "integer", BOTH),
        (4, "3", "integer", REFUSED),
        ("true", True, "boolean", REFUSED),
        ("true", "true", "string", MENDED),  # a string, not the boolean
        ("Ulm", "ulm", "string", BOTH),
        ("New-York, N.Y.", "new york ny", "string", BOTH),
        ("Ulm, Germany", "Ulm", "string", BOTH),
        ("Ulm", "Ulm, Germany", "string", NEITHER),
        ("15", "5", "string", REFUSED),  # a part of the text
        ("-5", "5", "string", REFUSED),
        ("1.5", "15", "string", REFUSED),
        ("mashed", "ash", "string", REFUSED),
        ("A plus", "A", ENUM, REFUSED),
        ("a", "A", ENUM, BOTH),
        ("x", None, "string", REFUSED),
        (["a", "b"], ["A", "b"], LIST, BOTH),
        (["b", "a"], ["a", "b"], LIST, NEITHER),
        (["New York"], ["new-york"], LIST, BOTH),
        ([5, 7], ["5", "7"], NUMBERS, MENDED),
        ([True], [1], NUMBERS, REFUSED),
        (["a"], ["a"], {"type": "array"}, MENDED),  # elements are objects where nothing else is documented
        (["x"], "space", LIST, REFUSED),  # a label of another type is not compared
        (["space"], "space", LIST, BOTH),
        ([{"a": "b c"}], [{"a": "b-c"}], OBJECTS, BOTH),
        ([{"a": "b"}], [{"a": "x"}], OBJECTS, NEITHER),
        ([{"a": "b"}, {"a": "b"}], [{"a": "b"}], OBJECTS, NEITHER),
        ({"a": 12}, {"a": 1}, "object", REFUSED),  # "1" is a part of "12"
        ({"a": 1}, {"a": 1}, "object", BOTH),
        ({"a": ["New York"]}, {"a": ["new york"]}, "object", MENDED),
        ({"a": {"b": "x y"}}, {"a": {"b": "X-Y"}}, "object", BOTH),
        ({"a": 1, "b": 2}, {"a": 1}, "object", NEITHER),
        ({"a": 1}, {"a": 1, "b": 2}, "object", NEITHER),
        ("x", {"a": 1}, "object", NEITHER),
    ],
)
def test_values(value, label, kind, wanted):
    assert of_value(value, label, kind) == wanted


def test_white_space_of_dialogues():
    assert of_value({"a": ["HTC Vive"]}, {"a": ["HTC Vive"]}, "object") == BOTH
    assert of_value({"a": ["HTC Vive"]}, {"a": ["HTC Vive"]}, "object", dialogue=True) == MENDED
    assert of_value("HTC Vive", "HTC Vive", "string", dialogue=True) == BOTH


def test_arguments():
    function = document(required=("a",), a="string", b="string", c={"type": "string", "default": "Ulm"})
    label = {"f": {"a": "x", "b": "y"}}
    assert of_calls([("f", {"a": "x", "b": "y"})], label, function) == BOTH
    assert of_calls([("f", {"b": "y"})], label, function) == NEITHER
    assert of_calls([("f", {"a": "x"})], label, function) == REFUSED  # only required ones have to be there
    assert of_calls([("f", {"a": "x", "b": "y", "c": "Rom"})], label, function) == NEITHER
    assert of_calls([("f", {"a": "x", "b": "y", "c": "Ulm"})], label, function) == MENDED
    assert of_calls([("f", {"a": "x", "b": "y", "d": "z"})], label, function) == NEITHER
    assert of_calls([("f", {"a": "x"})], {"f": {"a": "x", "b": None}}, function) == BOTH
    assert of_calls([("f", {"a": "x"})], {"f": {"a": "x", "c": "Ulm"}}, function) == BOTH
    assert of_calls([("f", {"a": "x"})], {"f": {}}, document(a="string")) == NEITHER
    assert of_calls([("f", {})], {"f": {}}, {**document(), "parameters": {}}) == BOTH


def test_functions_and_their_number():
    f, g = document("f", a="string"), document("g", a="string")
    one, two = {"a": "x"}, {"a": "y"}
    assert of_calls([("g", one), ("f", one)], {"f": one, "g": one}, f, g) == BOTH
    assert of_calls([("f", two), ("f", one)], {"f_1": one, "f_2": two}, f) == BOTH
    assert of_calls([("f", one), ("f", one)], {"f_1": one, "f_2": one}, f) == BOTH
    longer = {"a": "x and y"}
    assert of_calls([("f", longer), ("f", one)], {"f_1": one, "f_2": longer}, f) == BOTH
    assert of_calls([("f", one)], {"f_1": one, "f_2": two}, f) == NEITHER
    assert of_calls([("f", one), ("g", one)], {"f_1": one, "f_2": one}, f, g) == NEITHER
    both = AceTarget("calls", (f,), ({"f": one}, {"f": two}))
    assert verdicts(blocks(("f", two)), both) == BOTH


def test_one_answer_serves_for_several_labels():
    f = document("f", a="string")
    label = {"f_1": {"a": "x"}, "f_2": {"a": "y"}}
    assert of_calls([("f", {"a": "x and y"}), ("f", {"a": "z"})], label, f) == REFUSED


def test_names_that_end_in_numbers_or_contain_each_other():
    label = {"route_2": {"a": "x"}}
    assert of_calls([("route_2", {"a": "x"})], label, document("route_2", a="string")) == MENDED
    short, long = document("room", b="string"), document("room_book", a="string")
    assert of_calls([("room_book", {"a": "x"})], {"room_book": {"a": "x"}}, short, long) == MENDED
    assert of_calls([("room_book", {"a": "x"})], {"room_book": {"a": "x"}}, long, short) == BOTH
    assert tool_name("route_2", ["route_2"]) == "route_2" and tool_name("route_2", ["route"]) == "route"


def test_names_and_texts_that_python_cannot_read():
    assert of_calls([("my f", {"a": "x"})], {"my f": {"a": "x"}}, document("my f", a="string")) == MENDED
    assert of_value("a ] b", "a ] b", "string") == MENDED  # the reading ends at the bracket
    assert of_value("a [b] c", "a [b] c", "string") == BOTH


def test_where_the_released_scorer_crashes():
    target = AceTarget("calls", ({"name": "f", "arguments": document(x="string")["parameters"]},), ({"f": {"x": "a"}},))
    found = match_acebench(blocks(("f", {"x": "a"})), target)
    assert not found.ok and found.reason == "the released scorer crashes (KeyError)"
    assert match_acebench(blocks(("f", {"x": "a"})), target, "fixed").ok
    assert of_value("a", "a", "date") == MENDED  # a type that it does not know


@pytest.mark.parametrize("text", ["", "No.", "<tool_call>\n{", blocks(("f", {"x": "a"})) + "\nDone."])
def test_what_is_no_call(text):
    assert verdicts(text, AceTarget("calls", (document(x="string"),), ({"f": {"x": "a"}},))) == NEITHER


MISSING = "Missing necessary parameters (start_date, city) for the api (room_book)"


@pytest.mark.parametrize(
    ("kind", "label", "text", "wanted"),
    [
        ("incomplete", {"room_book": ["start_date", "city"]}, MISSING, BOTH),
        ("incomplete", {"room_book": ["start_date", "city"]}, MISSING.replace("room_book", "room"), MENDED),
        ("incomplete", {"room_book": ["start_date", "city"]}, "In which city, and what is the start date?", MENDED),
        ("incomplete", {"room_book": ["start_date", "city"]}, "In which city?", NEITHER),
        ("incomplete", {"room_book": ["start_date", "city"]}, MISSING.replace(", city", ""), NEITHER),
        ("incomplete", {"room_book": ["city"]}, blocks(("room_book", {})), NEITHER),
        ("incomplete", {"room_book": ["city"]}, f"{MISSING}\n{blocks(('room_book', {}))}", NEITHER),
        ("error_param", {"plan_id": ["12x"]}, "There is incorrect value (12x) for the parameters (plan_id)", BOTH),
        ("error_param", {"plan_id": ["12x"]}, "The plan ID is not valid.", MENDED),
        ("error_param", {"plan_id": ["12x"]}, "12X is no plan.", MENDED),
        ("error_param", {"plan_id": ["12x"]}, "There is incorrect value.", NEITHER),
        ("irrelevant", {}, "Due to the limitations of the function, I cannot solve this problem.", BOTH),
        ("irrelevant", {}, "I cannot do that.", MENDED),
        ("irrelevant", {}, blocks(("f", {"x": "the limitations of the function"})), REFUSED),
        ("irrelevant", {}, "<tool_call>\nthe limitations of the function", REFUSED),
        ("irrelevant", {}, "", NEITHER),
        ("irrelevant", {}, "...", NEITHER),
    ],
)
def test_special_rows(kind, label, text, wanted):
    assert verdicts(text, AceTarget(kind, (), (label,))) == wanted


def test_reading_the_benchmarks_own_format():
    assert official_calls('[a.b(x=-1, y=[True, None], z={"k": (1, 2)}), g(5)]') == [
        Call("a.b", {"x": -1, "y": [True, None], "z": {"k": (1, 2)}}),
        Call("g", {}),
    ]
    assert official_calls("[f(x=g(y=1), z=w, v=a[0])]") == [Call("f", {"x": {"g": {"y": 1}}, "z": "w", "v": "a[0]"})]
    for text in (None, "", "[1]", "f(x=1)", "[f(x=1]", "[f(x=f'{y}')]", "[x for x in y]", "[f(x=2+3)]", "[" * 500):
        assert official_calls(text) is None


def test_nothing_is_evaluated(tmp_path):
    file = tmp_path / "touched"
    for value in (
        f"open({str(file)!r}, 'w')",
        f"1 + open({str(file)!r}, 'w')",
        f"(lambda: open({str(file)!r}, 'w'))()",
    ):
        match_official_text(f"[f(x={value})]", AceTarget("calls", (document(x="string"),), ({"f": {"x": "a"}},)))
    assert not file.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(Call, st.sampled_from(["f", "a.b", "g_1"]), st.dictionaries(st.sampled_from("xyz"), JSON))))
def test_written_calls_are_read_back(calls):
    assert official_calls(write_calls(calls)) == calls


@settings(max_examples=300, deadline=None)
@given(
    st.text() | st.text(alphabet="[]()f=,x'\"{}:1 \n<tool_call>/"), JSON, st.sampled_from(["array", "object", "string"])
)
def test_no_text_and_no_label_raises(text, label, kind):
    target = AceTarget("calls", (document(x=kind),), ({"f": {"x": label}},))
    official_text(text)
    for response in (text, f"[f(x={text})]", blocks(("f", {"x": label}))):
        assert isinstance(match_official_text(response, target).ok, bool)
        verdicts(response, target)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_the_label_itself_is_fair(label):
    if label is not None:
        assert of_value(label, label, {})["fixed"]
