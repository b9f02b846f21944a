from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.toolcall import (
    Call,
    Match,
    Parsed,
    ParseFailure,
    Target,
    Tool,
    equal_calls,
    get_format,
    match,
    names_parameter,
    parse,
)
from looptool_jax.toolcall.matcher import equal_values
from looptool_jax.toolcall.paper_reward import released_reward

TOOL = Tool(
    "f",
    "",
    {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "x": {"type": "number"},
            "flag": {"type": "boolean", "default": False},
            "unit": {"type": "string", "default": "C"},
            "scale": {"type": "number", "default": 1},
            "must": {"type": "string", "default": "here"},
            "list": {"type": "array", "items": {"type": "number"}},
            "pair": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]},
            "nested": {
                "type": "object",
                "properties": {"q": {"type": "number"}, "d": {"type": "integer", "default": 3}},
            },
            "either": {"anyOf": [{"type": "string"}, {"type": "number"}]},
            "free": {},
        },
        "required": ["must"],
    },
)
FREE = Tool("g", "", {"type": "object", "properties": {key: {} for key in "abc"}})
TOOLS = (TOOL, FREE)


def f(**arguments) -> Call:
    return Call("f", {"must": "here", **arguments})


def g(**arguments) -> Call:
    return Call("g", arguments)


def written(*calls: Call) -> str:
    return get_format("qwen3").render_target(Target(calls=calls))


def fits(response: str, *calls: Call) -> bool:
    return match(response, Target(calls=calls), TOOLS).ok


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (f(n=1), f(n=1), True),
        (f(n=1), f(n=2), False),
        (f(n=1), f(n=1.0), False),
        (f(x=1), f(x=1.0), True),
        (f(x=1), f(x=True), False),
        (f(x=2**53 + 1), f(x=float(2**53)), False),
        (f(flag=True), f(flag=1), False),
        (f(free=1), f(free=1.0), False),
        (f(free=None), f(free=False), False),
        (f(free="1"), f(free=1), False),
        (f(free="A"), f(free="a"), False),
        (f(free=[]), f(free={}), False),
        (f(list=[1, 2]), f(list=[1.0, 2]), True),
        (f(list=[1, 2]), f(list=[2, 1]), False),
        (f(list=[1, 1, 2]), f(list=[1, 2, 2]), False),
        (f(list=[1]), f(list=[1, 1]), False),
        (f(pair=[1, 2]), f(pair=[1.0, 2]), True),
        (f(pair=[1, 2]), f(pair=[1, 2.0]), False),
        (f(nested={"q": 1}), f(nested={"q": 1.0, "d": 3}), True),
        (f(nested={"q": 1}), f(nested={"q": 1, "d": 4}), False),
        (f(either=1), f(either=1.0), True),
        (f(either="1"), f(either=1), False),
        (f(), f(unit="C"), True),
        (f(), f(unit="F"), False),
        (f(), f(scale=1.0), True),
        (f(), f(scale=True), False),
        (f(), f(flag=False), True),
        (f(), f(flag=0), False),
        (f(), f(free=None), False),
        (f(), Call("f", {}), False),
        (f(extra=1), f(extra=1), True),
        (f(extra=1), f(extra=1.0), False),
        (f(), Call("F", {"must": "here"}), False),
        (Call("unknown", {"a": 1}), Call("unknown", {"a": 1}), True),
        (Call("unknown", {"a": 1}), Call("unknown", {"a": 1.0}), False),
    ],
)
def test_calls_are_equal_by_their_schema_and_either_way_round(a, b, same):
    assert equal_calls(a, b, TOOLS) is same
    assert equal_calls(b, a, TOOLS) is same
    assert fits(written(a), b) is same
    assert fits(written(b), a) is same


def test_the_default_of_undeclared_arguments_excuses_none():
    tool = Tool("g", "", {"type": "object", "additionalProperties": {"type": "integer", "default": 0}})
    assert equal_calls(g(a=0), g(a=0), [tool])
    assert not equal_calls(g(), g(a=0), [tool]) and not equal_calls(g(a=0), g(), [tool])


def test_calls_match_as_a_multiset():
    a, b = g(a=1), g(a=2)
    assert all(fits(written(*order), a, a, b) for order in itertools.permutations([a, a, b]))
    assert not fits(written(a, a, b), a, b, b)
    assert not fits(written(a, a), a)
    assert not fits(written(a), a, a)
    assert not fits("No.", a)


def test_a_perfect_matching_is_found_where_a_greedy_one_fails():
    """Two defaults in a union: {} equals {"d": 1} and {"d": 2}, which differ. First come, first served would pair
    {} with {"d": 1} and leave {"d": 1} alone."""
    branches = [{"type": "object", "properties": {"d": {"type": "integer", "default": i}}} for i in (1, 2)]
    tool = Tool("g", "", {"type": "object", "properties": {"a": {"anyOf": branches}}})
    target = Target(calls=(g(a={"d": 1}), g(a={"d": 2})))
    for answer in itertools.permutations([g(a={}), g(a={"d": 1})]):
        assert match(written(*answer), target, [tool]).ok
    assert not match(written(g(a={"d": 1}), g(a={"d": 1})), target, [tool]).ok


def test_alternatives_are_accepted_whole():
    target = Target(calls=(g(a=1), g(a=2)), alternatives=((g(b=1),), (g(a=1), g(a=3))))
    assert match(written(g(a=3), g(a=1)), target, TOOLS).ok
    assert match(written(g(b=1)), target, TOOLS).ok
    assert not match(written(g(a=2), g(a=3)), target, TOOLS).ok
    assert not match("No call.", Target(calls=(g(a=1),), alternatives=((),)), TOOLS).ok


def test_text_before_a_call_and_thinking_are_free():
    assert fits(f"Let me see.\n{written(g(a=1))}", g(a=1))
    assert fits(f"<think>\n{written(g(a=2))}\n</think>\n\n{written(g(a=1))}", g(a=1))


def test_a_parsed_answer_matches_as_its_text():
    target = Target(calls=(g(a=1),))
    for text in (written(g(a=1)), written(g(a=2)), "hm", "<think>"):
        assert match(parse(text), target, TOOLS) == match(text, target, TOOLS)


@pytest.mark.parametrize(
    ("response", "target", "reason"),
    [
        ("<think>hm", Target(calls=(g(),)), "unclosed_think: the think block never closes"),
        ("Hello.", Target(calls=(g(),)), "no call"),
        (written(g(), g()), Target(calls=(g(),)), "2 calls instead of 1"),
        (written(f()), Target(calls=(g(),)), "f is not wanted"),
        (written(g(a=1)), Target(calls=(g(a=2),)), "g: argument 'a' differs"),
        (written(g(a=1, b=1)), Target(calls=(g(a=1),)), "g: argument 'b' is not wanted"),
        (written(g(a=1)), Target(calls=(g(a=1, b=1),)), "g: argument 'b' is missing"),
        (written(g(a=1), g(a=1), g(a=2)), Target(calls=(g(a=1), g(a=2), g(a=2))), "not each as often as wanted"),
        (written(g()), Target(text="No.", intent="refuse"), "a call of g where text was wanted"),
        (" \n", Target(text="No.", intent="refuse"), "no text"),
        ("Where?", Target(text="", intent="clarify", missing=("city", "day")), "does not ask for city, day"),
    ],
)
def test_every_mismatch_says_why(response, target, reason):
    result = match(response, target, TOOLS)
    assert not result.ok
    assert reason in result.reason


@pytest.mark.parametrize("intent", ["refuse", "answer", "clarify"])
def test_text_targets(intent):
    target = Target(text="Sorry, no.", intent=intent)
    assert match("I cannot do that.", target, TOOLS) == Match(True, "")
    assert match("<think>hm</think>\n\n不行。", target, TOOLS).ok
    for response in ("", "  \n", "...", "\u200b", "<think>text</think>", "<think>text", "Fine.</tool_call>",
                     "<tool_call>", written(g()), f"Sorry. {written(g())}"):  # fmt: skip
        assert not match(response, target, TOOLS).ok, response


@pytest.mark.parametrize(
    ("text", "name", "named"),
    [
        ("Which check-in date?", "check_in_date", True),
        ("WHICH CHECK IN DATE?", "checkInDate", True),
        ("Please give the check\nin date.", "check-in-date", True),
        ("I need `check_in_date`.", "check_in_date", True),
        ("I need checkInDate.", "checkInDate", True),
        ("I need CHECKINDATE.", "checkInDate", True),
        ("Which date do you check in?", "check_in_date", False),
        ("Which date?", "check_in_date", False),
        ("Give the HTTP url.", "HTTPUrl", True),
        ("What is the n?", "n", True),
        ("Any number?", "n", False),
        ("The destinations?", "destination", False),
        ("the **address** city", "address.city", True),
        ("Which Straße?", "straße", True),
        ("Which ÉTAGE?", "étage", True),
        ("Anything?", "_", False),
        ("", "city", False),
    ],
)
def test_naming_a_parameter(text, name, named):
    assert names_parameter(text, name) is named


def test_a_clarifying_text_must_name_every_missing_parameter():
    target = Target(text="", intent="clarify", missing=("departure_city", "travelDate"))
    assert match("Which departure city and travel date?", target, TOOLS).ok
    assert not match("Which departure city?", target, TOOLS).ok
    assert not match("<think>travel date</think>Which departure city?", target, TOOLS).ok


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, 1.0, 2.0, 0.5])
    | st.sampled_from(["", "a", "1"])
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("abc"), v, max_size=3), max_leaves=6
)
SCHEMAS = st.deferred(
    lambda: st.sampled_from(
        [{}, {"type": "integer"}, {"type": "number"}, {"type": ["number", "string"]}, {"type": "integer", "default": 1},
         {"type": "number", "default": 1}, {"anyOf": [{"type": "integer"}, {"type": "number"}]}]
    )
    | st.builds(lambda items: {"type": "array", "items": items}, SCHEMAS)
    | st.builds(
        lambda p, r: {"type": "object", "properties": p, "required": [k for k in p if k in r]},
        st.dictionaries(st.sampled_from("abc"), SCHEMAS, max_size=3),
        st.sets(st.sampled_from("abc")),
    )
)  # fmt: skip


@given(VALUES, VALUES, SCHEMAS)
@settings(max_examples=200, deadline=None)
def test_equality_is_reflexive_symmetric_and_finer_than_pythons_on_types(a, b, schema):
    assert equal_values(a, a, schema)
    assert equal_values(a, b, schema) == equal_values(b, a, schema)
    if equal_values(a, b, {}):
        assert json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


CALLS = st.builds(Call, st.sampled_from("fg"), st.dictionaries(st.sampled_from("abn"), SCALARS, max_size=2))


@given(st.lists(CALLS, min_size=1, max_size=4), st.lists(CALLS, min_size=1, max_size=4), st.randoms())
@settings(max_examples=150, deadline=None)
def test_order_of_calls_and_roles_of_the_two_sides_do_not_matter(calls, others, rng):
    shuffled = rng.sample(calls, len(calls))
    assert fits(written(*shuffled), *calls)
    assert fits(written(*calls), *others) == fits(written(*shuffled), *others) == fits(written(*others), *calls)


BROKEN = '<tool_call>\n{"name": "g", "arguments": }\n</tool_call>'

HOLES = {
    # row of the reference's table: (answer, target, released reward, strict verdict)
    "list order ignored": (written(g(a=[3, -4, 1])), Target(calls=(g(a=[1, 3, -4]),)), True, False),
    "duplicate list elements collapse": (written(g(a=[1, 1, 2])), Target(calls=(g(a=[1, 2, 2]),)), True, False),
    "call multiset collapses": (
        written(g(a=1), g(a=1), g(a=2)), Target(calls=(g(a=1), g(a=2), g(a=2))), True, False,
    ),
    "call order ignored": (written(g(a=1), g(a=2)), Target(calls=(g(a=2), g(a=1))), True, True),
    "true is 1": (written(g(a=True)), Target(calls=(g(a=1),)), True, False),
    "true is 1.0": (written(g(a=True)), Target(calls=(g(a=1.0),)), True, False),
    "1 is 1.0": (written(g(a=1)), Target(calls=(g(a=1.0),)), True, False),
    "call in the think block only": (
        f"<think>\n{written(g(a=1))}\n</think>\n\nI will not call.", Target(calls=(g(a=1),)), True, False,
    ),
    "malformed JSON equal to a malformed label": (BROKEN, Target(text=BROKEN, intent="answer"), True, False),
    "text label vs any text": (
        "Bananas.", Target(text="Which city?", intent="clarify", missing=("city",)), True, False,
    ),
    "text label vs nothing": ("", Target(text="No.", intent="refuse"), True, False),
    "text label vs an unclosed think": ("<think>\nhm", Target(text="No.", intent="refuse"), True, False),
    "text label vs a closing tag": ("Fine.</tool_call>", Target(text="No.", intent="refuse"), False, False),
    "prose before a call": (f"Let me see.\n{written(g(a=1))}", Target(calls=(g(a=1),)), True, True),
    "prose after a call": (f"{written(g(a=1))}\nDone.", Target(calls=(g(a=1),)), True, False),
    "no think block": (written(g(a=1)), Target(calls=(g(a=1),)), True, True),
    '"1" is not 1': (written(g(a="1")), Target(calls=(g(a=1),)), False, False),
    "letter case counts": (written(g(a="A")), Target(calls=(g(a="a"),)), False, False),
    "missing newlines inside the tags": (
        '<tool_call>{"name": "g", "arguments": {"a": 1}}</tool_call>', Target(calls=(g(a=1),)), False, True,
    ),
    "default-valued optional argument": (written(f(unit="C")), Target(calls=(f(),)), False, True),
    "more calls than the label": (written(g(a=1), g(a=1)), Target(calls=(g(a=1),)), False, False),
    "a call where text was wanted": (written(g(a=1)), Target(text="No.", intent="refuse"), False, False),
    "text where a call was wanted": ("No.", Target(calls=(g(a=1),)), False, False),
}  # fmt: skip


@pytest.mark.parametrize("row", HOLES)
def test_the_released_rewards_holes_are_closed_in_strict_and_kept_in_paper(row):
    response, target, paper, strict = HOLES[row]
    assert match(response, target, TOOLS, "paper").ok is paper
    assert match(response, target, TOOLS, "strict").ok is strict


def test_the_released_reward_reads_the_last_turn_of_a_whole_dialogue():
    label = written(g(a=1))
    assert (
        released_reward(f"<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>assistant\n{label}<|im_end|>", label) == 1
    )
    assert released_reward(f"{label}<|im_end|>\n{label}", label) == 1


@given(
    st.text(max_size=60)
    | st.sampled_from([BROKEN, written(g(a=[[[]]])), "<tool_call>\n" + "[" * 9000 + "\n</tool_call>"]),
    st.text(max_size=20) | st.just(BROKEN),
)
@settings(max_examples=200, deadline=None)
def test_the_released_reward_is_total(response, label):
    assert released_reward(response, label) in (0.0, 1.0)


def test_paper_mode_wants_raw_text_and_modes_are_checked():
    target = Target(calls=(g(),))
    for parsed in (Parsed((), "", ""), parse("<think>")):
        assert isinstance(parsed, (Parsed, ParseFailure))
        with pytest.raises(ValueError, match="raw text"):
            match(parsed, target, TOOLS, "paper")
    with pytest.raises(ValueError, match="unknown match mode 'loose'"):
        match("x", target, TOOLS, "loose")
