"""Verdicts that are scored and not written: the most probable of the four tags, in one pass."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import jax
import jax.numpy as jnp
import pytest

from looptool_jax.data.store import read_jsonl
from looptool_jax.inference.answers import Answer, AnswerConfig, Answerer, ChatRequest
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.console import Console
from looptool_jax.loop.judge import JudgeConfig, judge
from looptool_jax.loop.probe import Probe
from looptool_jax.loop.prompts import VerdictKind, judge_messages, written
from looptool_jax.models import decoder
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.world import generate, inject

SIZES = AnswerConfig(prompt_tokens=512, answer_tokens=96, slots=4)
SAMPLES = generate("train", 12, 11, ["single"])
KINDS = [str(kind) for kind in VerdictKind]


@pytest.fixture(scope="module")
def model():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    folder = str(files("looptool_jax.nano") / "judge")
    return Answerer(load_language_model(ModelConfig(folder, "qwen3", "float32"), mesh))


@pytest.fixture(scope="module")
def requests():
    wrong = inject(SAMPLES, 1.0, 1)[0]
    pairs = [
        (sample, written(sample.target), written(other.target)) for sample, other in zip(SAMPLES, wrong, strict=True)
    ]
    return [
        ChatRequest(f"{sample.id}/{order}", judge_messages("compact", sample, *(pair if order == 1 else pair[::-1])))
        for sample, *pair in pairs
        for order in (1, 2)
    ]


def test_the_most_probable_reply_is_chosen(model, requests):
    lm, tokenizer, params = model.lm, model.lm.tokenizer, model.lm.params

    @jax.jit
    def total(tokens, length, start):
        """Log-probability of the tokens from `start` on, one sequence at a time."""
        positions = jnp.arange(len(tokens))
        hidden, _ = decoder.forward(
            params, lm.cfg, tokens[None], positions[None], jnp.where(positions < length, length, 0)[None]
        )
        table = jax.nn.log_softmax(decoder.logits(params, lm.cfg, hidden[0]))
        chosen = jnp.take_along_axis(table[:-1], tokens[1:, None], axis=-1)[:, 0]
        return jnp.where((positions[1:] >= start) & (positions[1:] < length), chosen, 0.0).sum()

    expected = []
    for request in requests:
        prompt = tokenizer.encode_prompt(request.messages, (), False)
        sums = []
        for kind in KINDS:
            tokens = [*prompt, *tokenizer.encode_text(kind), tokenizer.eos_ids[0]]
            padded = jnp.zeros(640, jnp.int32).at[: len(tokens)].set(jnp.asarray(tokens))
            sums.append(float(total(padded, len(tokens), len(prompt))))
        expected.append(sums.index(max(sums)))
    assert model.choose(requests, KINDS, SIZES, lambda tokens: None) == expected
    assert len(set(expected)) > 1


def test_a_prompt_that_does_not_fit_has_no_verdict(model, requests):
    short = replace(SIZES, prompt_tokens=len(model.lm.tokenizer.encode_prompt(requests[0].messages, (), False)))
    chosen = model.choose(requests, KINDS, short, lambda tokens: None)
    assert chosen[0] is not None and None in chosen


def test_only_error_seeds_get_an_analysis(model, tmp_path, monkeypatch):
    asked = []

    def chat(requests, cfg, on_tokens):
        """The words about every second one come with another verdict."""
        asked.extend(request.id for request in requests)
        kinds = (VerdictKind.RESPONSE2_INCORRECT, VerdictKind.RESPONSE1_INCORRECT)
        return [Answer(f"Because.\n{kinds[i % 2]}", [], [], "stop") for i in range(len(requests))]

    def choose(requests, choices, cfg, on_tokens):
        """Of every two pairs the answer is wrong in one, and both are right in the other."""
        agreed = [
            choices.index(str(kind)) for kind in (VerdictKind.RESPONSE2_INCORRECT, VerdictKind.RESPONSE1_INCORRECT)
        ]
        both = choices.index(str(VerdictKind.BOTH_CORRECT))
        return [agreed[i % 2] if i % 4 < 2 else both for i in range(len(requests))]

    monkeypatch.setattr(model, "chat", chat)
    monkeypatch.setattr(model, "choose", choose)
    wrong = inject(SAMPLES, 1.0, 1)[0]
    probes = [
        Probe(sample.id, written(other.target), False, "", 1.0, [1], "stop")
        for sample, other in zip(SAMPLES, wrong, strict=True)
    ]
    cfg = JudgeConfig(prompt="compact", verdicts="scored", answers=SIZES)
    metrics = judge(model, SAMPLES, probes, 0, 1, cfg, str(tmp_path), Console(quiet=True))
    assert metrics["judged"] == len(SAMPLES) and metrics["unparsed_replies"] == 0
    rows = list(read_jsonl(str(tmp_path / "judgements.jsonl")))
    errors = [row["id"] for row in rows if row["verdict"] in ("prediction_wrong", "label_wrong")]
    assert len(errors) == len(SAMPLES) // 2 and asked == [f"{name}/1" for name in errors]
    assert [row["id"] for row in rows if row["analysis"] == "Because."] == errors[::2]
    for row in rows:
        assert len(row["votes"]) == 2 and all(row["votes"])
