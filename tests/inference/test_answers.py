"""Samples and chats in, answers out."""

from __future__ import annotations

import copy
import dataclasses

import jax
import pytest

from looptool_jax.inference.answers import AnswerConfig, Answerer, ChatRequest
from looptool_jax.inference.batch import Completion, PromptTooLong
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.toolcall import Call, Message, Parsed, ParseFailure, Sample, Target, get_format, parse

CFG = AnswerConfig(prompt_tokens=64, answer_tokens=8, slots=2, steps_per_sync=4)


@pytest.fixture(scope="module")
def answerer(folder) -> Answerer:
    return Answerer(
        load_language_model(ModelConfig(str(folder), "qwen3", "float32"), make_mesh(MeshConfig(), jax.devices()[:1]))
    )


def asking(*texts):
    target = Target(text="Yes.", intent="answer")
    return [Sample(text, (), (Message("user", text),), target) for text in texts]


def test_text_is_without_the_end_token_and_ids_are_with_it(answerer):
    tokenizer = answerer.lm.tokenizer
    ids = tokenizer.encode_text("done")
    stopped = answerer._answer(Completion("a", 0, [*ids, tokenizer.eos_ids[0]], [-1.0] * 5, 1.0, "stop"))
    assert (stopped.text, stopped.finish, len(stopped.tokens)) == ("done", "stop", 5)
    cut = answerer._answer(Completion("a", 0, ids, [-1.0] * 4, 1.0, "length"))
    assert (cut.text, cut.finish, cut.tokens) == ("done", "length", ids)


def test_an_answer_is_canonical_and_a_reply_is_as_written(answerer):
    tokenizer = copy.copy(answerer.lm.tokenizer)
    tokenizer.format = get_format("llama3.1")
    llama = Answerer(dataclasses.replace(answerer.lm, tokenizer=tokenizer))
    call = Call("f", {"a": 1})
    for text, parsed in (
        ('{"name": "f", "parameters": {"a": 1}}', Parsed((call,), "", "")),
        (get_format("qwen3").render_target(Target(calls=(call,))), None),
        ("Which city?", Parsed((), "Which city?", "")),
    ):
        ids = tokenizer.encode_text(text)
        completion = Completion("a", 0, ids, [-1.0] * len(ids), 1.0, "length")
        answer, reply = llama._answer(completion), llama._reply(completion)
        assert reply.text == text and answer.tokens == reply.tokens == ids
        found = parse(answer.text)
        assert found == parsed if parsed else isinstance(found, ParseFailure)
    said = answerer.chat([ChatRequest("a", [Message("user", "one")])], CFG, lambda _: None)
    assert said[0].tokens == answerer.greedy(asking("one"), CFG, lambda _: None)[0].tokens


def test_groups_follow_their_samples_and_keys(answerer):
    samples, keys = asking("one", "two", "three"), [(0, 1), (0, 2), (0, 3)]
    counted = []
    groups = answerer.groups(samples, 3, keys, 1.0, CFG, counted.append)
    assert sum(counted) == sum(len(answer.tokens) for group in groups for answer in group)
    read: list[int] = []
    Answerer(answerer.lm, on_prompts=read.append).groups(samples, 3, keys, 1.0, CFG, lambda _: None)
    assert sum(read) == sum(map(answerer.prompt_length, samples)), "a prompt is read once for its group"
    backwards = answerer.groups(samples[::-1], 3, keys[::-1], 1.0, CFG, lambda _: None)
    assert backwards[::-1] == groups
    assert len({tuple(answer.tokens) for group in groups for answer in group}) > 3


def test_what_does_not_fit_is_an_error_for_samples_and_an_empty_reply_for_chats(answerer):
    long = "x" * 100
    with pytest.raises(PromptTooLong, match=f"request {long}"):
        answerer.greedy(asking("short", long), CFG, lambda _: None)
    texts = ("one", long, "two")
    replies = answerer.chat([ChatRequest(text[:5], [Message("user", text)]) for text in texts], CFG, lambda _: None)
    assert (replies[1].text, replies[1].tokens, replies[1].finish) == ("", [], "prompt_too_long")
    answers = answerer.greedy(asking("one", "two"), CFG, lambda _: None)
    assert [replies[0].tokens, replies[2].tokens] == [answer.tokens for answer in answers]
    assert replies[0].tokens
