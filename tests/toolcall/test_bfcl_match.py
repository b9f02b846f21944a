"""BFCL's checker: every rule, and every quirk beside its mending. Rows and texts are written for these tests."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.toolcall import BfclCall, BfclTarget, Call, match_bfcl, match_bfcl_calls
from looptool_jax.toolcall.bfcl_literals import official_value, source_text
from looptool_jax.toolcall.source_literals import literal

BOTH = {"bfcl": True, "fixed": True}
NEITHER = {"bfcl": False, "fixed": False}
MENDED = {"bfcl": False, "fixed": True}
REFUSED = {"bfcl": True, "fixed": False}


def document(name: str = "f", required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    properties = {key: {"type": value} if isinstance(value, str) else value for key, value in properties.items()}
    return {
        "name": name,
        "description": "",
        "parameters": {"type": "dict", "properties": properties, "required": list(required)},
    }


def listed(kind: str, item: str) -> dict[str, Any]:
    return {"type": kind, "items": {"type": item}}


def single(accepted: dict[str, list[Any]], language="python", required=(), **properties) -> BfclTarget:
    return BfclTarget("single", language, (document("f", required, **properties),), (BfclCall("f", accepted),))


def verdicts(calls: list[Call], target: BfclTarget) -> dict[str, bool]:
    return {mode: match_bfcl_calls(calls, target, mode).ok for mode in ("bfcl", "fixed")}


def of_value(value: Any, accepted: list[Any], kind: str | dict[str, Any], language="python") -> dict[str, bool]:
    """The verdicts of one argument."""
    return verdicts([Call("f", {"x": value})], single({"x": accepted}, language, x=kind))


def block(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("value", "accepted", "kind", "wanted"),
    [
        (3, [3], "integer", BOTH),
        (3, [4, 3], "integer", BOTH),
        (3, [4], "integer", NEITHER),
        (3.0, [3], "integer", NEITHER),
        (True, [1], "integer", NEITHER),
        (None, [3], "integer", NEITHER),
        ("3", [3], "integer", NEITHER),
        (3, [3.0], "float", BOTH),
        (3, [3], "float", BOTH),
        (3.0, [3], "float", BOTH),
        (10**400, [3.0], "float", NEITHER),
        (True, [1.0], "float", NEITHER),
        (True, [True], "boolean", BOTH),
        (1, [True], "boolean", NEITHER),
        (False, [True], "boolean", NEITHER),
        ("n", ["n"], "integer", BOTH),  # a variable
        ("N", ["n"], "integer", MENDED),
        (5, ["n"], "integer", NEITHER),
        (5, [5], "any", BOTH),
        (5.0, [5], "any", NEITHER),
        (5, ["a", 5], "any", MENDED),
        (None, [None], "any", BOTH),
    ],
)
def test_numbers_booleans_and_variables(value, accepted, kind, wanted):
    assert of_value(value, accepted, kind) == wanted


@pytest.mark.parametrize(
    ("value", "accepted", "wanted"),
    [
        ("New-York, NY.", ["new york ny"], BOTH),
        ("it's", ['IT"S'], BOTH),
        ("a_b/c*d^e", ["abcde"], BOTH),
        ("a:b", ["ab"], NEITHER),
        ("a\nb", ["a b"], NEITHER),
        ("2024-01-05", ["2024/01/05"], BOTH),
        ("1,000", ["1000"], BOTH),
        ("-5", ["5"], REFUSED),
        ("1.5", ["15"], REFUSED),
        ("-1.5", ["-1.5"], BOTH),
        ("", ["a", ""], BOTH),
        (" ", ["a", ""], REFUSED),
        ("-", ["a", ""], REFUSED),
        ("a", ["b", ""], NEITHER),
        ("a", [], NEITHER),
        ("-", ["_"], REFUSED),
        ("a B", [5, "A b"], MENDED),  # compared as a variable is
    ],
)
def test_strings(value, accepted, wanted):
    assert of_value(value, accepted, "string") == wanted


@pytest.mark.parametrize(
    ("value", "accepted", "kind", "wanted"),
    [
        (["A b", "c."], [["a B", "C"]], listed("array", "string"), BOTH),
        (["c", "a"], [["a", "c"]], listed("array", "string"), NEITHER),
        (["a"], [["a", "c"]], listed("array", "string"), NEITHER),
        (["a", "c"], [["a"], ["a", "c"]], listed("array", "string"), BOTH),
        ([1, 2], [[1, 2]], listed("array", "integer"), BOTH),
        ([1.0, 2], [[1, 2]], listed("array", "integer"), NEITHER),
        ([True], [[1]], listed("array", "integer"), NEITHER),
        ([1, 2], [[1.0, 2.0]], listed("array", "float"), MENDED),
        ([1, 2], [[1, 2]], listed("array", "float"), BOTH),
        ([1.0, 2.0], [[1, 2]], listed("array", "float"), BOTH),
        (["a"], [["a"]], listed("tuple", "string"), BOTH),
        ([], [["a"], ""], listed("array", "string"), REFUSED),
        ([], [[]], listed("array", "string"), BOTH),
        ([True], [[1], ""], listed("array", "integer"), REFUSED),
        (["a"], [["b"], {"a": 1}], listed("array", "string"), NEITHER),  # the released checker ends here
        ([], [], listed("array", "string"), MENDED),
        ("names", ["names"], listed("array", "string"), BOTH),
        (["names"], ["names"], listed("array", "string"), NEITHER),
        ([["A"]], [[["a"]]], listed("array", "array"), MENDED),
        ([[True]], [[[1]]], listed("array", "array"), REFUSED),
        ("a", [["a"]], listed("array", "string"), NEITHER),
    ],
)
def test_lists(value, accepted, kind, wanted):
    assert of_value(value, accepted, kind) == wanted


@pytest.mark.parametrize(
    ("value", "accepted", "wanted"),
    [
        ({"a": "X y", "b": 2}, [{"a": ["x Y"], "b": [1, 2]}], BOTH),
        ({"a": "x"}, [{"a": ["x"], "b": [1, ""]}], BOTH),
        ({"a": "x"}, [{"a": ["x"], "b": [1]}], NEITHER),
        ({"a": "x", "c": 1}, [{"a": ["x"]}], NEITHER),
        ({"a": "y"}, [{"a": ["x"]}, {"a": ["y"]}], BOTH),
        ({"a": True}, [{"a": [1]}], REFUSED),
        ({"a": {"b": "X"}}, [{"a": [{"b": ["x"]}]}], MENDED),
        ({"a": ["X"]}, [{"a": [["x"]]}], MENDED),
        ({"a": "word"}, [{"a": "word"}], MENDED),
        ({"a": "w"}, [{"a": "word"}], REFUSED),
        ({}, [{"a": "word"}], REFUSED),
        ({}, ["", {}], BOTH),
        ({}, [""], NEITHER),
        ("settings", ["settings"], BOTH),
        ({"a": 1}, [{"a": 1}], MENDED),  # the released checker ends here
        ({"b": "y"}, [{"a": ["x"]}, "word", {"b": ["y"]}], MENDED),  # and here
    ],
)
def test_objects(value, accepted, wanted):
    assert of_value(value, accepted, "dict") == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([{"a": "X"}, {"a": "y", "b": 1}], BOTH),
        ([{"a": "x"}, {"a": "y"}], BOTH),
        ([{"a": "y"}, {"a": "x"}], NEITHER),
        ([{"a": "x"}], NEITHER),
        ([], NEITHER),
        ([{"a": "x"}, "y"], NEITHER),
    ],
)
def test_lists_of_objects(value, wanted):
    label = [[{"a": ["x"]}, {"a": ["y"], "b": [1, ""]}]]
    assert of_value(value, label, listed("array", "dict")) == wanted


@pytest.mark.parametrize("kind", [{"type": "array"}, {"type": "array", "items": None}, {"type": ["string"]}, {}])
def test_documents_that_end_the_released_checker(kind):
    assert of_value(["a"], [["a"]], kind) == MENDED
    assert of_value(["b"], [["a"]], kind) == NEITHER


def test_required_optional_and_unknown_arguments():
    target = single(
        {"must": [1], "may": [2, ""], "want": [3], "ghost": [4]},
        required=("must",),
        must="integer",
        may="integer",
        want={"type": "integer", "default": 9},
        plus={"type": "integer", "default": 7},
    )
    assert verdicts([Call("f", {"must": 1, "want": 3})], target) == MENDED, "ghost is not documented"
    assert verdicts([Call("f", {"must": 1, "want": 3, "ghost": 4})], target) == NEITHER
    target.calls[0].accepted.pop("ghost")
    assert verdicts([Call("f", {"must": 1, "want": 3})], target) == BOTH
    assert verdicts([Call("f", {"must": 1, "want": 3, "may": 2})], target) == BOTH
    assert verdicts([Call("f", {"must": 1, "want": 3, "may": 9})], target) == NEITHER
    assert verdicts([Call("f", {"must": 1, "want": 9})], target) == NEITHER, "a default, but another value is wanted"
    assert verdicts([Call("f", {"must": 1})], target) == NEITHER
    assert verdicts([Call("f", {"want": 3})], target) == NEITHER
    target.calls[0].accepted["must"].append("")
    assert verdicts([Call("f", {"want": 3})], target) == NEITHER, "required, whatever the label says"
    assert verdicts([Call("f", {"must": 1, "want": 3, "plus": 7})], target) == MENDED
    assert verdicts([Call("f", {"must": 1, "want": 3, "plus": 8})], target) == NEITHER
    assert verdicts([Call("f", {"must": 1, "want": 3, "other": 1})], target) == NEITHER


def test_names_are_exact_dots_included():
    target = BfclTarget("single", "python", (document("math.hypot"),), (BfclCall("math.hypot", {}),))
    assert verdicts([Call("math.hypot")], target) == BOTH
    for name in ("math_hypot", "hypot", "Math.hypot", "math.hypot "):
        assert verdicts([Call(name)], target) == NEITHER


def test_single_and_multiple_want_one_call_of_the_right_function():
    functions = (document("g"), document("f", x="integer"))
    target = BfclTarget("multiple", "python", functions, (BfclCall("f", {"x": [1]}),))
    assert verdicts([Call("f", {"x": 1})], target) == BOTH
    assert verdicts([Call("g")], target) == NEITHER
    assert verdicts([], target) == NEITHER
    assert verdicts([Call("f", {"x": 1}), Call("f", {"x": 1})], target) == NEITHER


def test_parallel_calls_match_in_any_order_and_each_once():
    functions = (document("f", x="string"), document("g"))
    target = BfclTarget(
        "parallel", "python", functions, (BfclCall("f", {"x": ["a"]}), BfclCall("f", {"x": ["b"]}), BfclCall("g", {}))
    )
    right = [Call("f", {"x": "a"}), Call("f", {"x": "b"}), Call("g")]
    assert all(verdicts(list(order), target) == BOTH for order in itertools.permutations(right))
    assert verdicts([right[0], right[0], right[2]], target) == NEITHER
    assert verdicts(right[:2], target) == NEITHER
    assert verdicts([*right, right[0]], target) == NEITHER


def test_a_greedy_matching_can_miss_what_a_perfect_one_finds():
    target = BfclTarget(
        "parallel",
        "python",
        (document("f", x="string"),),
        (BfclCall("f", {"x": ["a", "b"]}), BfclCall("f", {"x": ["a"]})),
    )
    a, b = Call("f", {"x": "a"}), Call("f", {"x": "b"})
    assert verdicts([a, b], target) == MENDED
    assert verdicts([b, a], target) == BOTH
    assert verdicts([b, b], target) == NEITHER


@pytest.mark.parametrize(
    ("value", "accepted", "kind", "wanted"),
    [
        ("5", [5], "integer", BOTH),
        (5, [5], "integer", NEITHER),
        ("5.0", [5], "integer", NEITHER),
        ("5L", [5], "long", BOTH),
        ("5", [5], "long", MENDED),
        ("0.5", [0.5], "double", BOTH),
        ("0.5d", [0.5], "double", MENDED),
        ("0.5f", [0.5], "float", BOTH),
        ("0.5", [0.5], "float", MENDED),
        ("true", [True], "boolean", BOTH),
        ("True", [True], "boolean", NEITHER),
        ("theUser", ["theUser"], "any", BOTH),
        ('"theUser"', ["theUser"], "String", MENDED),
        ("new Path('/a b')", ["new Path('/a b')"], "any", BOTH),
        ("new int[]{1, 2}", [[1, 2]], listed("Array", "integer"), BOTH),
        ("new int[]{1, 3}", [[1, 2]], listed("Array", "integer"), NEITHER),
        ('new String[]{"a", "b"}', [["a", "b"]], listed("Array", "String"), MENDED),
        ("new String[]{a, b}", [["a", "b"]], listed("Array", "String"), BOTH),
        ('new ArrayList<String>(Arrays.asList("a", "b"))', [["a", "b"]], listed("ArrayList", "String"), BOTH),
        ('new ArrayList<>(Arrays.asList("a, b"))', [["a, b"]], listed("ArrayList", "String"), MENDED),
        ('new ArrayList<>() {{ add("a"); add("b"); }}', [["a", "b"]], listed("ArrayList", "String"), BOTH),
        ('List.of("a", "b")', [["a", "b"]], listed("ArrayList", "String"), MENDED),
        ('new ArrayList<>(Arrays.asList("a", 1, true))', [["a", 1, True]], listed("ArrayList", "any"), MENDED),
        ("new ArrayList<>()", [[]], listed("ArrayList", "String"), BOTH),
        ('new HashMap<>() {{ put("k", 1); put("l", "x"); }}', [{"k": [1], "l": ["x"]}], "HashMap", BOTH),
        ('new HashMap<>() {{ put("k", f(1)); }}', [{"k": ["f(1)"]}], "HashMap", MENDED),
        ('Map.of("k", 1)', [{"k": [1]}], "HashMap", MENDED),
        ("settings", ["settings"], "HashMap", BOTH),
        ("new HashSet<>()", [[]], "Set", NEITHER),
    ],
)
def test_java(value, accepted, kind, wanted):
    assert of_value(value, accepted, kind, "java") == wanted


@pytest.mark.parametrize(
    ("value", "accepted", "kind", "wanted"),
    [
        ("5", [5], "integer", BOTH),
        (5, [5], "integer", NEITHER),
        ("5", [5.0], "float", BOTH),
        ("5e2", [500.0], "float", MENDED),
        ("5n", [5], "Bigint", BOTH),
        ("5", [5], "Bigint", MENDED),
        ("true", [True], "Boolean", BOTH),
        ("'x'", ["x"], "String", BOTH),
        ("x", ["x"], "String", BOTH),
        ("[1, 2]", [[1, 2]], listed("array", "integer"), BOTH),
        ("new Array(1, 2)", [[1, 2]], listed("array", "integer"), BOTH),
        ('["a, b"]', [["a, b"]], listed("array", "String"), MENDED),
        ("[[1, 2], [3]]", [[[1, 2], [3]]], listed("array", "array"), BOTH),
        ("list", ["list"], listed("array", "String"), BOTH),
        ("{a: 1, 'b': \"x\"}", [{"a": [1], "b": ["x"]}], "dict", BOTH),
        ("{a: [1, 2], b: true}", [{"a": [[1, 2]], "b": [True]}], "dict", BOTH),
        ('{a: "5"}', [{"a": ["5"]}], "dict", MENDED),
        ("{a: {b: 1}, c: 2}", [{"a": [{"b": [1]}], "c": [2]}], "dict", MENDED),
        ("{}", [{}], "dict", BOTH),
    ],
)
def test_javascript(value, accepted, kind, wanted):
    assert of_value(value, accepted, kind, "javascript") == wanted


@pytest.mark.parametrize(
    ("text", "kind", "item", "language", "value"),
    [
        ("[[1, 2],\n['a']]", "array", "array", "javascript", [[1, 2], ["a"]]),
        ("[[]]", "array", "array", "javascript", [[""]]),
        ("[[1], 2]", "array", "String", "javascript", ["[1"]),
        ("[1\n]", "array", "integer", "javascript", "[1\n]"),
        ("new Array([1], [2])", "array", "array", "javascript", [[1], [2]]),
        ("{a: 1, b, c: 2}", "dict", None, "javascript", {"a": "1, b", "c": 2}),
        ("{a: 1, :b: 2}", "dict", None, "javascript", {"a": 1, "b": 2}),
        ("{a: 1, : 2}", "dict", None, "javascript", {"a": 1, "": 2}),
        ("{a}", "dict", None, "javascript", {}),
        ("5\n", "integer", None, "java", 5),
        ("5n\n", "Bigint", None, "javascript", "5n\n"),
        ('x new HashMap<a\nb>() {put("k", 1L)}', "HashMap", None, "java", {"k": 1}),
        ("new HashMap<a\nb>()", "HashMap", None, "java", "new HashMap<a\nb>()"),
        ('new HashMap<>() {{ put("k", "}"); }}', "HashMap", None, "java", {}),
        ("new ArrayList<>() {{ add(1);\nadd(x) }}", "ArrayList", "integer", "java", [1, "x"]),
        ("new ArrayList<>() {{ }} add(1) }}", "ArrayList", "integer", "java", [1]),
        ("new ArrayList<>() {{ }}", "ArrayList", "integer", "java", []),
        ("new int[]{1,, 2}", "Array", "integer", "java", [1, 2]),
        ('new ArrayList<>(Arrays.asList("a))', "ArrayList", "String", "java", [""]),
    ],
)
def test_the_released_reading_of_source_text(text, kind, item, language, value):
    assert official_value(text, kind, item, language) == value


@pytest.mark.parametrize(
    ("text", "language", "value"),
    [
        ('"a\\"b\\n"', "java", 'a"b\n'),
        ("'a'", "java", "a"),
        ("'ab'", "java", "'ab'"),
        ("'ab'", "javascript", "ab"),
        ("`a,\nb`", "javascript", "a,\nb"),
        ("-.5e1", "javascript", -5.0),
        ("5n", "javascript", 5),
        ("5n", "java", "5n"),
        ("5L", "javascript", "5L"),
        ("null", "java", None),
        ("nullable", "java", "nullable"),
        ("1 + 2", "java", "1 + 2"),
        ("[1, [2, {a: 'x, y'}], f(3, 4),]", "javascript", [1, [2, {"a": "x, y"}], "f(3, 4)"]),
        ("[1, 2", "javascript", "[1, 2"),
        ("[1 + 2, 'a' + b]", "javascript", ["1 + 2", "'a' + b"]),
        ("[1)]", "javascript", "[1)]"),
        ("{a: (b}", "javascript", "{a: (b}"),
        ('new HashMap<String, int[]>() {{ put("a", new int[]{1}); }}', "java", {"a": [1]}),
        ("new HashMap<>() {{ add(1); }}", "java", "new HashMap<>() {{ add(1); }}"),
        ("new HashMap<>() {{ put(1, 2); }}", "java", "new HashMap<>() {{ put(1, 2); }}"),
        ("Arrays.asList(1, x)", "java", [1, "x"]),
        ("1e9999", "java", "1e9999"),
        ("[" * 5000, "javascript", "[" * 5000),
    ],
)
def test_literals_by_their_grammar(text, language, value):
    found = literal(text, language)
    assert found == value and type(found) is type(value)


SCALARS = st.booleans() | st.integers(-99, 99) | st.sampled_from([0.5]) | st.text("ab ,{}[]()'\"\\n:;", max_size=6)
COLLECTIONS = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), v, max_size=3),
    max_leaves=6,
).filter(lambda value: isinstance(value, (list, dict)))


@given(COLLECTIONS, st.sampled_from(["java", "javascript"]))
@settings(max_examples=200, deadline=None)
def test_what_is_written_as_source_is_read_back(value, language):
    kinds = {"java": ("Array", "HashMap"), "javascript": ("array", "dict")}[language]
    assert literal(source_text(value, kinds[isinstance(value, dict)], "any", language), language) == value


@given(
    st.text("new ArrayList<>(Arrays.asList(){}[],:\"'\n 1aL;putd", max_size=60),
    st.sampled_from(["integer", "float", "Boolean", "String", "any", "array", "dict", "ArrayList", "HashMap", "Array"]),
    st.sampled_from(["java", "javascript"]),
)
@settings(max_examples=300, deadline=None)
def test_the_verdict_is_total(text, kind, language):
    of_value(text, ["x", [1], {"a": [1]}], listed(kind, "integer"), language)


RIGHT = single({"x": [1]}, x="integer")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (block("f", x=1), BOTH),
        (f"Sure.\n{block('f', x=1)}", BOTH),
        (f"<think>\n{block('f', x=2)}\n</think>\n\n{block('f', x=1)}", BOTH),
        (f"<think>\n{block('f', x=1)}\n</think>\n\nNo.", NEITHER),
        (f"<think>\n{block('f', x=1)}", REFUSED),
        (f"{block('f', x=1)}\n<tool_call>\nbroken\n</tool_call>", REFUSED),
        (f"{block('f', x=1)}\n<tool_call>\n[]\n</tool_call>", NEITHER),
        (f"{block('f', x=1)}\nDone.", REFUSED),
        (block("f", x=1).replace("\n", ""), MENDED),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 2, "x": 1}}\n</tool_call>', REFUSED),
        ('<tool_call>\n{"name": "f", "arguments": null}\n</tool_call>', NEITHER),
        ("", NEITHER),
    ],
)
def test_how_an_answer_is_read(text, wanted):
    assert {mode: match_bfcl(text, RIGHT, mode).ok for mode in wanted} == wanted


@pytest.mark.parametrize(
    ("text", "irrelevance", "relevance"),
    [
        ("I cannot do that.", BOTH, NEITHER),
        (block("f"), NEITHER, BOTH),
        (block("g"), NEITHER, REFUSED),
        ("<tool_call>\n{broken\n</tool_call>", REFUSED, NEITHER),
        ("<think>hm", REFUSED, NEITHER),
    ],
)
def test_where_no_call_or_some_call_is_wanted(text, irrelevance, relevance):
    for kind, wanted in (("irrelevance", irrelevance), ("relevance", relevance)):
        target = BfclTarget(kind, "python", (document("f"),))
        assert {mode: match_bfcl(text, target, mode).ok for mode in wanted} == wanted


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([], "0 calls instead of 1"),
        ([Call("g")], "g instead of f"),
        ([Call("f")], "f: argument 'x' is missing"),
        ([Call("f", {"x": "1"})], "f: argument 'x' must be integer"),
        ([Call("f", {"x": 2})], "f: argument 'x' differs"),
        ([Call("f", {"x": 1, "y": 2})], "f: argument 'y' is not wanted"),
    ],
)
def test_every_mismatch_says_why(calls, reason):
    for mode in ("bfcl", "fixed"):
        assert match_bfcl_calls(calls, RIGHT, mode).reason == reason
