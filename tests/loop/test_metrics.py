"""What trackers are told of the steps and stages of a round, and how the figures of a step are counted."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from looptool_jax.inference.answers import Answer
from looptool_jax.loop.metrics import STEP_NAMES, Speed, stage_metrics, step_metrics, training_steps
from looptool_jax.loop.train import _rollout_metrics

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
    found = _rollout_metrics(groups, rewards)
    assert found.pop("reward_std") == pytest.approx(statistics.stdev([1, 0, 0, 0]) / 3, abs=1e-6)
    assert found == {
        "reward": 0.416667, "zero_variance": 0.666667, "solved": 0.333333, "truncated": 0.083333, "answer_tokens": 46,
        "length_mean": 3.833333, "length_min": 1, "length_max": 9,
    }  # fmt: skip
    assert _rollout_metrics([group[:1] for group in groups], rewards[:, :1])["reward_std"] == 0.0, "groups of one"
