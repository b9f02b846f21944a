"""The validator is asked about samples that models wrote: a history may hold arguments no tool declares."""

from dataclasses import replace

from looptool_jax.toolcall import Call, Message
from looptool_jax.world import generate, validate


def test_an_undeclared_argument_in_the_history_is_no_crash():
    sample = next(s for s in generate("train", 200, 5, ["multi_turn"]) if any(m.calls for m in s.messages))
    messages = tuple(
        replace(m, calls=tuple(Call(c.name, {**c.arguments, "folder": "drafts"}) for c in m.calls)) if m.calls else m
        for m in sample.messages
    )
    assert isinstance(messages[0], Message)
    assert validate(sample) == []
    assert validate(replace(sample, messages=messages)) is not None
