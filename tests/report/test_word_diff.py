"""Two responses side by side: the pieces are the texts, what is marked is what differs."""

import random

from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.report.page import text
from looptool_jax.report.word_diff import MOST_WORDS, laid_out, side_html, word_diff
from looptool_jax.toolcall import Call, Target

WORDS = st.lists(st.sampled_from(["a", "b", " ", "\n", "city", '"', "é", "<b>", "7"]), max_size=40).map("".join)


@given(WORDS, WORDS)
def test_the_pieces_are_the_texts_and_the_unmarked_ones_are_the_same(first, second):
    one, two = word_diff(first, second)
    assert "".join(one) == first and "".join(two) == second
    assert "".join(one[::2]) == "".join(two[::2])
    assert (len(one) == 1 and len(two) == 1) == (first == second)


def test_only_what_differs_is_marked():
    one = laid_out(Target((Call("book", {"city": "Ulm", "days": 3}), Call("go", {}))))
    two = laid_out('<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>\n<tool_call>\n'
                   '{"name": "book", "arguments": {"days": 4, "city": "Ulm"}}\n</tool_call>')  # fmt: skip
    assert one == 'book\n  city: "Ulm"\n  days: 3\ngo'
    first, second = word_diff(one, two)
    assert first[1::2] == ["3"] and second[1::2] == ["4"], "the order of calls and of arguments says nothing"
    assert side_html(first, "del") == f"{text(first[0])}<del>3</del>\ngo"


def test_what_cannot_be_read_stays_as_it_is():
    assert laid_out('<tool_call>\n{"name": ') == '<tool_call>\n{"name":'
    assert laid_out("") == laid_out(Target(text=" ", intent="answer")) == "(empty)"
    assert laid_out(Target(text="Which city?", intent="clarify")) == laid_out("Which city?") == "Which city?"


def test_white_space_keeps_nothing_together():
    first, second = word_diff("one two three", "four five six")
    assert first == ["", "one two three", ""] and second == ["", "four five six", ""]


def test_long_texts_are_compared_at_their_ends_alone():
    rng = random.Random(0)
    middles = [" ".join(rng.choices("abcdefgh", k=2 * MOST_WORDS)) for _ in range(2)]
    first, second = word_diff(*(f"the same start {middle} the same end" for middle in middles))
    assert first[0].startswith("the same start ") and first[-1].endswith(" the same end")
    assert len(first) == len(second) == 3 and first[::2] == second[::2]
