"""Expansion by a generator that can only write calls of its tools: valid whatever its weights are."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from random import Random

import jax
import numpy as np
import pytest

from looptool_jax.config import load_config
from looptool_jax.inference import answers, grammar
from looptool_jax.inference.answers import AnswerConfig, Answerer, ChatRequest
from looptool_jax.inference.batch import Completion
from looptool_jax.inference.grammar import GrammarError, Grammars, call_line
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.console import Console
from looptool_jax.loop.expand import ExpandConfig, expand
from looptool_jax.loop.judge import ErrorSeed
from looptool_jax.loop.pool import locate
from looptool_jax.loop.prompts import conversation_text, expansion_grammar, parse_expansion, response_text, with_tags
from looptool_jax.loop.runner import Runner
from looptool_jax.models import decoder
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.toolcall import ChatTokenizer, Parsed, Sample, Tool, check_call, parse
from looptool_jax.world import generate as world

pytest.importorskip("llguidance")
QUIET = Console(quiet=True)
SIZES = AnswerConfig(prompt_tokens=640, answer_tokens=112, slots=4)
NESTED = Tool(
    "book",
    'with "signs"',
    {
        "type": "object",
        "properties": {
            "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
            "who": {"type": "object", "properties": {"vip": {"type": "boolean"}}, "required": ["vip"]},
            "unit": {"type": "string", "enum": ["km", "mi\nle", '"']},
        },
        "required": ["days", "unit"],
    },
)


@pytest.fixture(scope="module")
def generator() -> Answerer:
    """nano's judge on two devices, so that slots are split."""
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    return Answerer(load_language_model(ModelConfig(locate("nano/judge"), "qwen3", "float32"), mesh))


@pytest.fixture(scope="module")
def untrained(generator) -> Answerer:
    """The same architecture, its weights drawn."""
    lm = generator.lm
    drawn = jax.jit(decoder.init_params, static_argnums=0)(lm.cfg, jax.random.key(3))
    return Answerer(lm.with_params(jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), drawn, lm.params)))


def calling(count: int, seed: int = 3) -> list[Sample]:
    return [sample for sample in world("train", 6 * count, seed) if sample.target.is_call][:count]


def seeds(count: int) -> list[ErrorSeed]:
    wrong = '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call>'
    return [ErrorSeed(sample, wrong, "call 1: another function") for sample in calling(count)]


def expanded(model, folder, some, console=QUIET, **fields) -> dict:
    how = {"verify": "rules", "prompt": "compact", "per_error": 2, "chunk": 2, "top_p": 1.0, "top_k": 0} | fields
    cfg = ExpandConfig(answers=SIZES, **how)
    return expand(model, None, some, None, 5, 1, cfg, str(folder), console)


def test_the_worlds_dialogues_and_calls_are_let_through():
    tokenizer = ChatTokenizer.from_pretrained(locate("nano/judge"), "qwen3")
    grammars = Grammars(tokenizer, 2048)
    for sample in calling(30):
        dialogue = [message for message in sample.messages if message.role != "system"]
        answer = response_text(replace(sample.target, text=""))
        reply = f"INPUT:\n{conversation_text(dialogue)}\nOUTPUT:\n{answer}"
        ids = [*tokenizer.encode_text(reply), tokenizer.eos_ids[0]]
        [matcher] = grammars.constraint(expansion_grammar(sample.tools), 1).matchers
        assert matcher.validate_tokens(ids) == len(ids), reply
        wrong = [*tokenizer.encode_text(reply.replace('"arguments": {', '"arguments": {"undeclared": 1, ')), *ids[-1:]]
        [matcher] = grammars.constraint(expansion_grammar(sample.tools), 1).matchers
        assert matcher.validate_tokens(wrong) < len(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "Sure!", "INPUT: Hi", "INPUT:\n \n\nOUTPUT:\n{", "INPUT:\nOUTPUT:\n", "INPUT:\nHi\nINPUT: again",
        "INPUT:\nHi\nOUTPUT: {", "INPUT:\nHi\nOUTPUT:\nI cannot.", "INPUT:\nHi\nOUTPUT:\n<tool_call>",
    ],
)  # fmt: skip
def test_what_the_reader_could_not_take_apart_is_not_let_through(text):
    tokenizer = ChatTokenizer.from_pretrained(locate("nano/judge"), "qwen3")
    constraint = Grammars(tokenizer, 2048).constraint(expansion_grammar([NESTED]), 1)
    ids = tokenizer.encode_text(text)
    assert constraint.matchers[0].validate_tokens(ids) < len(ids)


def test_whatever_is_drawn_among_the_allowed_tokens_is_read_and_valid():
    """The INPUT: tokens at random, then its end. The OUTPUT: at random, with a liking for what closes strings."""
    tokenizer, rng, whole, several = ChatTokenizer.from_pretrained(locate("nano/judge"), "qwen3"), Random(0), 0, 0
    grammars = Grammars(tokenizer, 2048)
    closing = {i for i in range(2048) if '"' in tokenizer.tokenizer.decode([i], skip_special_tokens=False)}
    for sample in calling(25):
        tools = (*sample.tools, NESTED)
        constraint = grammars.constraint(expansion_grammar(tools), 1)
        ids, allowed, forced = [], bits(constraint.first), tokenizer.encode_text("INPUT:\nA")
        end, ended = tokenizer.encode_text(".\nOUTPUT:\n"), False
        marks = set(end[1:])
        while len(ids) < 400 and not set(ids[-1:]) & set(tokenizer.eos_ids):
            if len(ids) > 30 and not ended and end[0] in allowed:  # not amid a character
                forced, ended = end, True
            among = allowed & closing if ended and rng.random() < 0.5 else set()
            ids.append(
                forced.pop(0) if forced else rng.choice(sorted(among or (allowed if ended else allowed - marks)))
            )
            assert ids[-1] in allowed
            allowed = bits(constraint.next(ids[-1:])[0])
        if ids[-1] not in tokenizer.eos_ids:
            continue
        reply = tokenizer.decode(ids)
        expansion = parse_expansion(reply, sample)
        output = reply.split("\nOUTPUT:\n")[1] if isinstance(expansion, str) else expansion.output_text
        assert not isinstance(expansion, str) or expansion.startswith("INPUT:"), reply
        parsed = parse(with_tags(output))
        assert isinstance(parsed, Parsed) and parsed.calls and not parsed.text, reply
        assert [problem for call in parsed.calls for problem in check_call(call, tools)] == [], reply
        whole += 1
        several += len(parsed.calls) > 1
    assert whole > 12 and several > 2


def test_replies_of_untrained_weights_are_valid_calls_each_of_its_own_tools(untrained):
    """More requests than slots, nearly uniform draws, and one among them that is free."""
    samples = [replace(sample, tools=(sample.tools[0],)) for sample in calling(9)]
    asked = [
        ChatRequest(sample.id, sample.messages[-1:], (7, i), f"start: call\n{call_line(sample.tools)}")
        for i, sample in enumerate(samples)
    ]
    asked.append(ChatRequest("free", asked[0].messages, (7, 0)))
    *replies, free = untrained.chat(asked, SIZES, lambda tokens: None, temperature=4.0)
    ended = 0
    for sample, reply in zip(samples, replies, strict=True):
        assert reply.text.startswith(f'{{"name": "{sample.tools[0].name}", "arguments": {{')
        if reply.finish == "stop":
            [call] = parse(with_tags(reply.text)).calls
            assert check_call(call, sample.tools) == []
            ended += 1
    assert ended > 2 and not free.text.startswith('{"name"')


@pytest.mark.parametrize(("count", "steps"), [(1, 0), (6, 5)])
def test_a_reply_ends_where_its_grammar_gives_up_and_the_others_go_on(count, steps, generator, monkeypatch):
    """As with a schema that outgrows llguidance's limits: what is there is kept, as one that was cut."""
    asked = [
        ChatRequest(sample.id, sample.messages[-1:], grammar=f"start: call\n{call_line(sample.tools)}")
        for sample in calling(count)
    ]
    whole = generator.chat(asked, SIZES, lambda tokens: None)
    begun, real, left = [], grammar.Constraint.next, {}

    def next_(self, tokens):
        begun.extend([self] * (self not in begun))
        left[id(self)] = left.get(id(self), steps) - 1
        if self is begun[0] and left[id(self)] < 0:
            raise GrammarError("too many expressions")
        return real(self, tokens)

    monkeypatch.setattr(grammar.Constraint, "next", next_)
    replies = generator.chat(asked, SIZES, lambda tokens: None)
    [(cut, before)] = [(reply, old) for reply, old in zip(replies, whole, strict=True) if reply != old]
    assert (cut.tokens, cut.finish) == (before.tokens[:steps], "length")


def test_restricted_replies_are_the_best_of_what_the_grammar_allows(generator):
    """Greedy, against passes over the whole text for every token."""
    lm = generator.lm
    asked = [
        ChatRequest(sample.id, sample.messages[-1:], grammar=f"start: call\n{call_line(sample.tools)}")
        for sample in calling(3)
    ]
    replies = generator.chat(asked, SIZES, lambda tokens: None)
    grammars, length = Grammars(lm.tokenizer, lm.cfg.vocab_size), 256

    @jax.jit
    def logits_behind(tokens, count):
        positions = jax.numpy.arange(length)[None]
        ends = jax.numpy.where(positions < count, count, 0)
        hidden, _ = decoder.forward(lm.params, lm.cfg, tokens[None], positions, ends)
        return decoder.logits(lm.params, lm.cfg, hidden[:, count - 1])[0]

    for request, reply in zip(asked, replies, strict=True):
        constraint = grammars.constraint(request.grammar, 1)
        tokens, allowed = lm.tokenizer.encode_prompt(request.messages, (), False), bits(constraint.first)
        start = len(tokens)
        while len(tokens) - start < SIZES.answer_tokens and not set(tokens[start:]) & set(lm.tokenizer.eos_ids):
            padded = np.pad(tokens, (0, length - len(tokens)))
            logits = np.asarray(logits_behind(padded, len(tokens)))
            tokens.append(max(allowed, key=lambda token: logits[token]))
            allowed = bits(constraint.next(tokens[-1:])[0])
        assert reply.tokens == tokens[start:], reply.text


def test_nothing_breaks_its_schema_and_a_killed_stage_ends_in_the_same_bytes(generator, tmp_path):
    some = seeds(4)
    free = expanded(generator, tmp_path / "free", some, temperature=1.5)
    held = expanded(generator, tmp_path / "held", some, temperature=1.5, grammar=True)
    assert free["rejected_rules"] > 0 and held["rejected_rules"] == 0
    assert held["seeds_without_grammar"] == 0 and held["accepted"] > free["accepted"]
    chunks = 0

    class Dying:
        def chat(self, *args, **how):
            nonlocal chunks
            chunks += 1
            if chunks == 2:
                raise KeyboardInterrupt
            return generator.chat(*args, **how)

    with pytest.raises(KeyboardInterrupt):
        expanded(Dying(), tmp_path / "killed", some, temperature=1.5, grammar=True)
    assert expanded(generator, tmp_path / "killed", some, temperature=1.5, grammar=True) == held
    for file in ("expanded.jsonl", "rejected.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "held" / file).read_bytes()


def test_tools_that_give_no_grammar_are_counted_and_written_freely(generator, tmp_path, capsys):
    one, other = seeds(2)
    pattern = {"type": "object", "properties": {"code": {"type": "string", "pattern": "(?=a)b"}}}
    odd = replace(one, sample=replace(one.sample, tools=(*one.sample.tools, Tool("odd", "", pattern))))
    metrics = expanded(generator, tmp_path, [odd, other], Console(), grammar=True)
    assert (metrics["seeds_without_grammar"], metrics["generated"]) == (1, 4)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "tools of 1 of 2 error seeds" in said and one.sample.id in said


def test_probing_and_rollouts_know_no_grammar(generator, monkeypatch):
    """What `expand.grammar` sets reaches the batch loop from the requests of chats alone."""
    made = []

    def decoded(engine, params, requests, on_progress, scorer=None, constrain=None):
        made.append([constrain is not None and constrain(number) is not None for number in range(len(requests))])
        return [[Completion(request.id, 0, [2], [0.0], [0.0], "stop")] for request in requests]

    monkeypatch.setattr(answers, "generate", decoded)
    some = calling(2)
    generator.greedy(some, SIZES, lambda tokens: None)
    generator.groups(some, 1, [(0, 0)] * 2, 1.0, SIZES, lambda tokens: None)
    asked = [ChatRequest("free", some[0].messages), ChatRequest("held", some[0].messages, grammar='start: "a"')]
    generator.chat(asked, SIZES, lambda tokens: None)
    assert made == [[False, False], [False, False], [False, True]]
    assert "grammar" not in (*signature(Answerer.greedy).parameters, *signature(Answerer.groups).parameters)


def test_without_llguidance_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(grammar, "installed", lambda: False)
    with pytest.raises(GrammarError, match=r"expand\.grammar=true: needs llguidance.*looptool-jax\[grammar\]"):
        expanded(None, tmp_path / "stage", seeds(1), grammar=True)
    with pytest.raises(GrammarError, match=r"expand\.grammar=true"):
        Runner(load_config("micro", [f"run_dir={tmp_path}/run", "expand.grammar=true"]), QUIET).run()
    assert not list((tmp_path / "run").rglob("*.safetensors")) and not (tmp_path / "stage").exists()


def test_a_generator_behind_a_server_is_refused_when_the_run_is_configured():
    endpoint = "generator_model={path: null, endpoint: {url: http://127.0.0.1:1/v1, model: m}}"
    with pytest.raises(ValueError, match=r"expand\.grammar=true: .* generator_model\.path"):
        load_config("micro", [endpoint, "expand.grammar=true"])
    load_config("micro", [endpoint])


def bits(words: np.ndarray) -> set[int]:
    return set(np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0].tolist())
