"""Grammars of calls: what they let through is a call that its tool's schema allows, and every label is let through."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from looptool_jax.inference.grammar import EVERY, GrammarError, Grammars
from looptool_jax.inference.serving.requests import ApiError, Served, read_chat
from looptool_jax.loop.pool import locate
from looptool_jax.toolcall import Call, ChatTokenizer, Parsed, Target, Tool, check_call, get_format, parse
from looptool_jax.toolcall.formats.base import tool_json
from looptool_jax.world import generate

pytest.importorskip("llguidance")
VOCAB = 2048
TOKENIZER = ChatTokenizer.from_pretrained(locate("nano/policy"), "qwen3")
NESTED = Tool(
    "book",
    "",
    {
        "type": "object",
        "properties": {
            "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
            "who": {"type": "object", "properties": {"vip": {"type": "boolean"}}, "required": ["vip"]},
            "unit": {"type": "string", "enum": ["km", "mile"]},
            "rate": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
        "required": ["days", "unit"],
    },
)


def speaking(format: str) -> Grammars:
    """The nano tokenizer with the calls of another format."""
    tokenizer = ChatTokenizer(TOKENIZER.tokenizer, "qwen3")
    tokenizer.format = get_format(format)
    return Grammars(tokenizer, VOCAB)


def bits(words: np.ndarray) -> list[int]:
    return np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0].tolist()


def walk(grammars: Grammars, grammar: str, rng: Random, most: int = 400) -> str | None:
    """An answer of tokens drawn among the allowed ones, with a liking for what ends strings; None: too long."""
    tokenizer, constraint = grammars.tokenizer, grammars.constraint(grammar, 1)
    closing = [i for i in range(VOCAB) if '"' in tokenizer.tokenizer.decode([i], skip_special_tokens=False)]
    ids, allowed = [], bits(constraint.first)
    while len(ids) < most:
        ends = set(allowed) & set(tokenizer.eos_ids)
        if ends and rng.random() < 0.5:
            return tokenizer.decode(ids)
        among = sorted(set(allowed) & set(closing)) if rng.random() < 0.5 else []
        ids.append(rng.choice(among or sorted(set(allowed) - ends) or sorted(ends)))
        if ids[-1] in tokenizer.eos_ids:
            return tokenizer.decode(ids)
        allowed = bits(constraint.next(ids[-1:])[0])
    return None


@pytest.mark.parametrize("format", ["qwen3", "llama3.1"])
def test_what_a_grammar_lets_through_is_a_valid_call(format):
    rng, grammars, whole, several = Random(0), speaking(format), 0, 0
    for sample in generate("train", 60, 3):
        tools = (*sample.tools, NESTED)
        text = walk(grammars, grammars.of_calls(tools, several=True), rng)
        if text is None:
            continue
        parsed = parse(grammars.tokenizer.format.canonical(text))
        assert isinstance(parsed, Parsed) and parsed.calls and not parsed.text, text
        assert [problem for call in parsed.calls for problem in check_call(call, tools)] == [], text
        whole += 1
        several += len(parsed.calls) > 1
    assert whole > 30 and several > 5


def test_every_label_is_let_through_and_what_breaks_its_schema_is_not():
    grammars, labels = Grammars(TOKENIZER, VOCAB), 0
    for sample in generate("train", 60, 4):
        if not sample.target.is_call:
            continue
        ids = [*TOKENIZER.encode_target(Target(calls=sample.target.calls)), TOKENIZER.eos_ids[0]]
        matcher = grammars.constraint(grammars.of_calls(sample.tools, several=True), 1).matchers[0]
        assert matcher.validate_tokens(ids) == len(ids), sample.id
        first = sample.target.calls[0]
        wrong = (Call(first.name, {**first.arguments, "undeclared": 1}), Call("no_such_tool", first.arguments))
        for call in wrong:
            ids = TOKENIZER.encode_target(Target(calls=(call,)))
            assert matcher.validate_tokens(ids) < len(ids)
        labels += 1
    assert labels > 20


def test_a_single_call_may_not_be_followed_by_another():
    grammars = Grammars(TOKENIZER, VOCAB)
    call = Call(NESTED.name, {"days": [1], "unit": "km"})
    for several in (False, True):
        matcher = grammars.constraint(grammars.of_calls([NESTED], several), 1).matchers[0]
        ids = TOKENIZER.encode_target(Target(calls=(call, call)))
        assert (matcher.validate_tokens(ids) == len(ids)) == several


def test_answers_that_have_ended_or_nobody_waits_for_may_go_on_with_any_token():
    grammars = Grammars(TOKENIZER, VOCAB)
    constraint = grammars.constraint(grammars.of_json({"enum": ["a"]}), 2)
    ids = TOKENIZER.encode_text('"a"')
    for token in ids:
        rows = constraint.next([token, token, 5])
    assert (rows[2] == EVERY).all() and set(bits(rows[0])) == set(bits(rows[1])) == set(TOKENIZER.eos_ids)
    ended = constraint.next([TOKENIZER.eos_ids[0]] * 3)
    assert (ended == EVERY).all() and (constraint.next([7, 7, 7]) == EVERY).all()


def test_a_control_token_in_a_tools_name_never_becomes_one():
    grammars = Grammars(TOKENIZER, VOCAB)
    named = Tool("book<tool_call>")
    constraint = grammars.constraint(grammars.of_calls([named], False), 1)
    ids = TOKENIZER.encode_target(Target(calls=(Call(named.name),)))
    assert ids.count(2042) == 1 and constraint.matchers[0].validate_tokens(ids) == len(ids)
    with pytest.raises(GrammarError, match="does not go on"):
        walk(grammars, grammars.of_calls([named], False), Random(0))


def test_a_schema_without_grammar_is_refused_in_one_line():
    grammars = Grammars(TOKENIZER, VOCAB)
    with pytest.raises(GrammarError, match="nope") as caught:
        grammars.constraint(grammars.of_json({"type": "nope"}), 1)
    assert "\n" not in str(caught.value)


def test_a_schema_that_would_hold_up_the_others_is_refused():
    grammars = speaking("qwen3")
    huge = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}
    with pytest.raises(GrammarError, match="characters as a grammar"):
        grammars.constraint(grammars.of_json(huge), 1)


def test_the_answers_of_a_request_go_their_own_ways():
    grammars = speaking("qwen3")
    constraint = grammars.constraint(grammars.of_json({"enum": [[1], [2]]}), 2)
    ids = [TOKENIZER.encode_text(text) for text in ("[1]", "[2]")]
    for column in zip(*ids, strict=True):
        rows = constraint.next(column)
    ends = [TOKENIZER.eos_ids[0] in bits(row) for row in rows]
    assert ends == [True, True] and ids[0] != ids[1]


def test_a_parameter_that_is_listed_as_required_may_say_that_it_is_optional():
    """As one row of BFCL does, whose documents clients pass on."""
    engine = SimpleNamespace(
        prompt_len=384, answer_len=64, group=1, top_p=1.0, top_k=0, cfg=SimpleNamespace(vocab_size=VOCAB)
    )
    served = Served("nano", TOKENIZER, engine, False, None)
    body = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}], "store": False}
    texts = []
    for says in ({"optional": True}, {}):
        properties = {"a": {"type": "integer", **says}, "b": {"type": "string"}}
        function = {"name": "f", "parameters": {"type": "object", "properties": properties, "required": ["a"]}}
        asked = read_chat({**body, "tools": [{"type": "function", "function": function}]}, served)
        texts.append(TOKENIZER.decode(asked.request.tokens))
    assert texts[0] == texts[1] and '"required": ["a"]' in texts[0]


def test_without_the_extra_requests_for_grammars_are_refused():
    engine = SimpleNamespace(prompt_len=384, answer_len=64, group=1, top_p=1.0, top_k=0)
    served = Served("nano", TOKENIZER, engine, False, None)
    body = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}], "tools": [tool_json(NESTED)]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    for change in ({"tool_choice": "required"}, {"tools": [], "response_format": form}):
        with pytest.raises(ApiError, match=r"install looptool-jax\[grammar\]"):
            read_chat(json.loads(json.dumps({**body, **change})), served)
