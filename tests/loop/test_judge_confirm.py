"""A weak judge replaces a label only by the answer that it gives itself; the embedded judge at work."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import jax
import pytest

from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.console import Console
from looptool_jax.loop.judge import JudgeConfig, judge, own_answers_differ, target_of
from looptool_jax.loop.probe import Probe
from looptool_jax.loop.prompts import written
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.world import generate, inject

SIZES = AnswerConfig(prompt_tokens=640, answer_tokens=96, slots=8)
SAMPLES = generate("train", 24, 11, ["single"])


@pytest.fixture(scope="module")
def model():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Answerer(
        load_language_model(ModelConfig(str(files("looptool_jax.nano") / "judge"), "qwen3", "float32"), mesh)
    )


def probe(sample, answer):
    return Probe(sample.id, answer, False, "", 1.0, [1], "stop")


def test_only_the_judges_own_answer_replaces_a_label(model):
    own = [answer.text for answer in model.greedy(SAMPLES[:6], SIZES, lambda tokens: None)]
    others = [text.replace('": "', '": "x') for text in own]
    changed = [answer != other for answer, other in zip(others, own, strict=True)]
    assert any(changed)
    for answers, expected in ((own, [False] * 6), (others, changed)):
        pairs = [(sample, target_of(answer)) for sample, answer in zip(SAMPLES, answers, strict=False)]
        reasons = own_answers_differ(model, pairs, SIZES, lambda tokens: None)
        objections = ["the judge answers otherwise" if differs else "" for differs in expected]
        assert [reason.partition(":")[0] for reason in reasons] == objections


def test_the_embedded_judge_finds_most_wrong_labels_and_harms_few(model, tmp_path):
    """Right answers to samples half of whose labels are wrong, and wrong answers to the other half."""
    noisy, truth = inject(SAMPLES, 0.5, 0)
    bad = {row.sample_id for row in truth}
    wrong = {s.id: written(s.target) for s in inject(SAMPLES, 1.0, 1)[0]}
    probes = [
        probe(sample, written(right.target) if sample.id in bad else wrong[sample.id])
        for sample, right in zip(noisy, SAMPLES, strict=True)
    ]
    cfg = JudgeConfig(prompt="compact", answers=replace(SIZES, answer_tokens=128))
    metrics = judge(model, noisy, probes, 0, 1, cfg, str(tmp_path), Console(quiet=True))
    from looptool_jax.data.store import read_jsonl

    verdicts = {row["id"]: row["verdict"] for row in read_jsonl(f"{tmp_path}/judgements.jsonl")}
    assert metrics["agreement"] > 0.6
    assert sum(verdicts[id_] == "label_wrong" for id_ in bad) > len(bad) / 2
    assert sum(verdicts[s.id] == "label_wrong" for s in noisy if s.id not in bad) < len(bad) / 4
