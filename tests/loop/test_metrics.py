"""What trackers are told of the steps and stages of a round, and how the figures of a step are counted."""

from __future__ import annotations

import re
import statistics
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from looptool_jax.data.store import DataError, read_jsonl, write_jsonl
from looptool_jax.inference.answers import Answer, Answerer
from looptool_jax.loop import train as training
from looptool_jax.loop.console import Console, Watcher
from looptool_jax.loop.metrics import STEP_NAMES, Speed, stage_metrics, step_metrics, training_steps
from looptool_jax.loop.reward import RewardConfig
from looptool_jax.toolcall import Origin
from looptool_jax.training import policy
from looptool_jax.training.optimizer import OptimizerConfig
from looptool_jax.world import generate as world

ROUND = {
    "eval-0": {
        "items": 16, "accuracy": 0.25, "interval95": 0.21, "truncated": 4,
        "by_category": {"multi_turn": {"items": 2, "accuracy": 0.5}, "odd/naïve?": {"items": 3, "accuracy": 0.0}},
    },
    "round-1/train": {"steps": 2, "reward_first": 0.5, "reward_last": 0.3},
    "round-1/probe": {
        "samples": 16, "mastered": 11, "accuracy": 0.6875, "truncated": 0, "mean_perplexity_mastered": 1.02,
        "tokens": 500, "drafted_tokens": 375, "near_ties": 0,
    },
    "round-1/judge": {
        "mismatches": 5, "prediction_wrong": 2, "label_wrong": 2, "both_correct": 0, "both_wrong": 0, "undecided": 1,
        "judged": 3, "agreement": 0.666667, "unparsed_replies": 0, "error_seeds": 4,
    },
    "round-1/expand": {
        "seeds": 2, "generated": 4, "accepted": 2, "acceptance": 0.5, "rejected_parse": 0, "rejected_rules": 1,
        "rejected_judge": 0, "rejected_duplicate": 1,
    },
    "round-1/compose": {
        "samples": 16, "parts": [{"part": "error", "taken": 4}, {"part": "expanded", "taken": 12}], "contaminated": 0,
    },
    "round-1/score": {
        "label_repair": {
            "seeds": 16, "wrong_labels": 3, "replaced": 2, "precision": 1.0, "recall": 0.67, "repaired": 0.67,
            "removed": 0.0, "harm": 0.0,
        },
        "noise_before": {"known": 16, "wrong": 3, "share": 0.1875},
        "noise_after": {"known": 0, "wrong": 0, "share": None},
        "expansion": {"samples": 2, "valid": 0.5},
    },
}  # fmt: skip


def test_what_a_round_tells():
    told = {}
    for stage, metrics in ROUND.items():
        told |= stage_metrics(stage, metrics)
    assert told["eval/accuracy"] == told["eval/truncated"] == 0.25
    assert (told["eval/accuracy/multi_turn"], told["eval/accuracy/odd_na_ve_"]) == (0.5, 0.0)
    assert (told["probe/mastered"], told["probe/drafted"]) == (0.6875, 0.75)
    shares = {name: told[f"judge/share/{name}"] for name in ("prediction_wrong", "label_wrong", "undecided")}
    assert shares == {"prediction_wrong": 0.4, "label_wrong": 0.4, "undecided": 0.2}
    assert (told["expand/acceptance"], told["expand/rejected/rules"], told["expand/rejected/duplicate"]) == (
        0.5, 0.25, 0.25,
    )  # fmt: skip
    assert (told["compose/share/error"], told["compose/share/expanded"]) == (0.25, 0.75)
    assert (told["score/repair/precision"], told["score/repair/recall"], told["score/repair/harm"]) == (1.0, 0.67, 0.0)
    assert told["score/expansion/valid"] == 0.5 and "score/noise/after" not in told
    assert all(isinstance(value, int | float) for value in told.values())
    assert training_steps("round-1/train", ROUND["round-1/train"]) == 2 and training_steps("eval-0", {}) == 0


def test_nothing_is_told_of_what_was_not_counted():
    nothing = dict.fromkeys(ROUND["round-1/judge"], 0)
    assert stage_metrics("round-1/judge", nothing) == {"judge/mismatches": 0, "judge/error_seeds": 0}
    assert stage_metrics("seed", {"pool": 3}) == {}


def test_what_a_step_tells():
    row = {"step": 3, "reward": 0.5, "zero_variance": 0.25, "rollout_logprob_diff_max": 0.1, "tokens": 9}
    assert step_metrics(row) == {
        "train/reward": 0.5,
        "train/frac_reward_zero_std": 0.25,
        "train/sampling/sampling_logp_difference/max": 0.1,
    }
    assert len(set(STEP_NAMES.values())) == len(STEP_NAMES)
    assert "train/mfu" not in Speed(10.0, 20.0, None).metrics() and Speed(1.0, 2.0, 0.4).metrics()["train/mfu"] == 0.4


def test_what_is_counted_of_the_answers_of_a_step():
    """Three groups of four: all right, all wrong, one of four right."""
    lengths = ([2, 2, 2, 2], [5, 5, 5, 5], [1, 9, 4, 4])
    groups = [[Answer("", [7] * n, [0.0] * n, "length" if n == 9 else "stop") for n in each] for each in lengths]
    rewards = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    found = training._rollout_metrics(groups, rewards)
    assert found.pop("reward_std") == pytest.approx(statistics.stdev([1, 0, 0, 0]) / 3, abs=1e-6)
    assert found == {
        "reward": 0.416667, "zero_variance": 0.666667, "solved": 0.333333, "truncated": 0.083333, "answer_tokens": 46,
        "length_mean": 3.833333, "length_min": 1, "length_max": 9,
    }  # fmt: skip
    assert training._rollout_metrics([group[:1] for group in groups], rewards[:, :1])["reward_std"] == 0.0, (
        "groups of one"
    )


class Told(Watcher):
    def __init__(self):
        self.rows = []

    def metrics(self, step, metrics):
        self.rows.append((step, metrics))


class Trainer:
    """An update that costs nothing and says what it is told to."""

    loss = 0.5

    def __init__(self, *args, **how):
        self.updates = how["updates"]

    def restore(self):
        return 0

    def policy(self):
        return None

    def update(self, prompts, groups, rewards):
        assert rewards.shape == (2, 2)
        return {"loss": self.loss, "zero": 0.0, "grad_norm": 1.0, "tokens": 20.0, "prompt_tokens": 6.0}

    def share_of_peak(self, prompts, groups, seconds):
        return 0.25 * seconds

    save = export = lambda self, *args: None


def test_rates_and_speeds_of_the_steps_of_a_round(tmp_path, monkeypatch):
    """Two updates a step beside a clock that goes a second a look: the rate is that of a step's first update."""
    clock = count()
    monkeypatch.setattr(policy, "PolicyTrainer", Trainer)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(training.Answerer, "prompt", lambda self, sample: [1, 2, 3])
    answer = Answer("", [7] * 5, [0.0] * 5, "stop")
    monkeypatch.setattr(training.Answerer, "groups", lambda self, samples, *rest: [[answer] * 2 for _ in samples])
    cfg = training.TrainConfig(batch=2, group=2, epochs=1, updates=2, checkpoint_every=1)
    cfg.optimizer = OptimizerConfig(learning_rate=8e-3, warmup_steps=8)
    console, told = Console(quiet=True), Told()
    console.watchers.append(told)
    console.steps = 10
    samples = world("train", 6, 3)
    training.train(Answerer(None), samples, cfg, RewardConfig(), 5, 2, str(tmp_path), console)
    rows = list(read_jsonl(tmp_path / "steps.jsonl"))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 2e-3, 4e-3])
    assert [step for step, _ in told.rows] == [11, 12, 13]
    speed = {"train/tokens_per_second/rollout": 20.0, "train/tokens_per_second/update": 26.0, "train/mfu": 0.25}
    assert console.speed == speed and told.rows[1][1].items() >= speed.items()
    assert not any("second" in key or "mfu" in key for row in rows for key in row), "the clock is in no artifact"


def test_a_loss_that_is_no_number_ends_the_round_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "PolicyTrainer", Trainer)
    monkeypatch.setattr(Trainer, "loss", float("nan"))
    monkeypatch.setattr(training.Answerer, "prompt", lambda self, sample: [1, 2, 3])
    answer = Answer("", [7] * 5, [0.0] * 5, "stop")
    monkeypatch.setattr(training.Answerer, "groups", lambda self, samples, *rest: [[answer] * 2 for _ in samples])
    cfg = training.TrainConfig(batch=2, group=2, epochs=1)
    with pytest.raises(DataError, match=r"loss is nan in step 1 of 3.*learning_rate"):
        training.train(
            Answerer(None), world("train", 6, 3), cfg, RewardConfig(), 5, 2, str(tmp_path), Console(quiet=True)
        )
    assert not (tmp_path / "steps.jsonl").exists()


def test_what_each_part_of_a_round_taught():
    seeds = world("train", 3, 3)
    grown = [sample.moved(Origin("expanded", 2, parent="x")) for sample in seeds[:1]]
    rights = {seeds[0].id: (0, 3), seeds[1].id: (4, 4), seeds[2].id: (1, 4)}
    passed = [training.Passed(id_, epoch, right, 4) for id_, both in rights.items() for epoch, right in enumerate(both)]
    assert training.by_part([*grown, *seeds[1:]], passed) == {
        "expanded": {"groups": 2, "pass_rate": 0.375, "zero_variance": 0.5},
        "seed": {"groups": 4, "pass_rate": 0.8125, "zero_variance": 0.75},
    }


def test_pass_rates_are_means_over_epochs(tmp_path):
    lines = [training.Passed("a", 0, 1, 4), training.Passed("b", 0, 4, 4), training.Passed("a", 1, 2, 4)]
    write_jsonl(tmp_path / training.PASSED, [line._asdict() for line in lines])
    assert training.pass_rates(str(tmp_path)) == {"a": 0.375, "b": 1.0}


def test_the_documentation_names_every_metric_of_a_step():
    text = (Path(__file__).parents[2] / "docs/WATCHING.md").read_text()
    lines = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    words = [(re.findall(r"\w+", ours), re.findall(r"\w+", theirs)) for ours, theirs in lines]
    for key, name in STEP_NAMES.items():
        assert any(key in ours and name.rpartition("/")[2] in theirs for ours, theirs in words), key
