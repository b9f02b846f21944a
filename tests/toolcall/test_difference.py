"""The places at which two responses differ."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.toolcall import Call, Difference, Target, Tool, differences, get_format, match

TOOL = Tool(
    "book",
    "Book.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "guests": {"type": "integer"}, "price": {"type": "number"}},
    },
)
TOOLS = (TOOL, Tool("rent"))


def said(*calls: Call) -> str:
    return get_format("qwen3").render_target(Target(calls))


A = Call("book", {"city": "Oslo", "guests": 2})
B = Call("book", {"city": "Rome", "guests": 3})
A_JSON, B_JSON = (json.dumps(call.to_json()) for call in (A, B))


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (said(A), said(A), []),
        (said(A, B), said(B, A), []),  # the order of calls does not matter
        (said(A), said(Call("book", {"guests": 2, "city": "Oslo"})), []),
        (said(Call("book", {"price": 5})), said(Call("book", {"price": 5.0})), []),  # equal as the schema says
        (said(A), said(Call("book", {"city": "Oslo"})), [Difference("guests", "2", "none")]),
        (said(A, B), said(A), [Difference("call", B_JSON, "none")]),
        (said(A), said(A, A), [Difference("call", "none", A_JSON)]),
        (said(A, B), said(Call("book", {"city": "Rome", "guests": 4}), A), [Difference("2.guests", "3", "4")]),
        (said(A), said(Call("rent", {"city": "Oslo", "guests": 2})), [Difference("function", "book", "rent")]),
        (said(A), "Which  day?", [Difference("response", A_JSON, "Which day?")]),
        ("No.", "No.", []),
        ("", "<tool_call>{", [Difference("response", "none", "<tool_call>{")]),
    ],
)  # fmt: skip
def test_differences(first, second, found):
    assert differences(first, second, TOOLS) == found


_calls = st.lists(
    st.builds(
        Call,
        st.sampled_from(["book", "rent", "unknown"]),
        st.dictionaries(st.sampled_from(["city", "guests"]), st.sampled_from(["Oslo", "Rome", 2, 3, [1], None])),
    ),
    min_size=1,
    max_size=3,
)


@given(_calls, _calls)
def test_no_difference_is_a_match_and_the_sides_are_symmetric(one, other):
    here, there = (differences(said(*a), said(*b), TOOLS) for a, b in ((one, other), (other, one)))
    assert (not here) == match(said(*one), Target(tuple(other)), TOOLS).ok
    assert bool(here) == bool(there)


def test_no_name_reads_as_another_line():
    forged = Call("book", {"x\ncity: 1 | 2": "Oslo"})
    assert differences(said(forged), said(Call("book", {})), TOOLS) == [
        Difference('"x\\ncity: 1 | 2"', '"Oslo"', "none")
    ]
    assert differences(said(Call("b\nc")), said(Call("book")), TOOLS) == [Difference("function", '"b\\nc"', "book")]


_pieces = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "book", "arguments": {"city": ', '"Oslo"', "}}", "\n", "<think>"]
)


@given(st.lists(_pieces | st.text(max_size=5), max_size=12).map("".join), st.lists(_pieces, max_size=12).map("".join))
def test_total(one, other):
    differences(one, other, TOOLS)
