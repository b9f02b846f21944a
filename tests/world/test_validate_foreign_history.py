"""The validator is asked about samples that models wrote: a history may hold arguments no tool declares."""

from dataclasses import replace

from looptool_jax.toolcall import Call, Message
from looptool_jax.world import generate, validate
from looptool_jax.world.reading import stated
from looptool_jax.world.tools import VARIANTS, world_tool


def test_an_undeclared_argument_in_the_history_is_no_crash():
    sample = next(s for s in generate("train", 200, 5, ["multi_turn"]) if any(m.calls for m in s.messages))
    messages = tuple(
        replace(m, calls=tuple(Call(c.name, {**c.arguments, "folder": "drafts"}) for c in m.calls)) if m.calls else m
        for m in sample.messages
    )
    assert isinstance(messages[0], Message)
    assert validate(sample) == []
    assert isinstance(validate(replace(sample, messages=messages)), list)


def test_words_where_numbers_are_due_are_no_crash():
    tool = next(tool for i in range(VARIANTS) if "nights" in (tool := world_tool("book_hotel", i)).parameters)
    assert stated(tool, "nights", "Do it for each nights: 3, many and 5.") == [3, "many", 5]
