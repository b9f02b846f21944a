"""What trackers are told of a run, under the names that users of TRL know (docs/WATCHING.md has the table).

A row of `steps.jsonl` and a stage's metrics in the manifest are the same in every run of the same configuration. What
the clock says (`Speed`, seconds of a stage) goes to trackers and to `ledger.jsonl` alone.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

STEP_NAMES = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "zero_variance": "frac_reward_zero_std",
    "solved": "frac_reward_all_right",
    "kl": "kl",
    "entropy": "entropy",
    "ratio": "ratio",
    "clip_fraction": "clip_ratio/region_mean",
    "clip_low_fraction": "clip_ratio/low_mean",
    "clip_high_fraction": "clip_ratio/high_mean",
    "dual_clip_fraction": "clip_ratio/dual_mean",
    "rollout_logprob_diff_mean": "sampling/sampling_logp_difference/mean",
    "rollout_logprob_diff_max": "sampling/sampling_logp_difference/max",
    "length_mean": "completions/mean_length",
    "length_min": "completions/min_length",
    "length_max": "completions/max_length",
    "truncated": "completions/clipped_ratio",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
}


_OTHER = re.compile(r"[^A-Za-z0-9_. -]")  # in a category's name; MLflow takes no more


class Speed(NamedTuple):
    """Of a training step: tokens a second of the rollouts (generated ones) and of the update (prompts once, answers),
    and the update's share of the devices' peak (MFU), where that is known."""

    rollout: float
    update: float
    mfu: float | None

    def metrics(self) -> dict[str, float]:
        found = {"train/tokens_per_second/rollout": self.rollout, "train/tokens_per_second/update": self.update}
        return found | ({} if self.mfu is None else {"train/mfu": self.mfu})


def step_metrics(row: dict[str, Any]) -> dict[str, float]:
    """Of a row of `steps.jsonl`."""
    return {f"train/{name}": row[key] for key, name in STEP_NAMES.items() if key in row}


def kind(stage: str) -> str:
    """What a stage is in every round: eval of eval-0 and round-2/eval."""
    return stage.rpartition("/")[2].partition("-")[0]


def training_steps(stage: str, metrics: dict[str, Any]) -> int:
    """That a finished stage has made."""
    return metrics["steps"] if kind(stage) == "train" else 0


def stage_metrics(stage: str, metrics: dict[str, Any]) -> dict[str, float]:
    """Of a finished stage; shares rather than counts, so that rounds compare. Nothing where nothing was counted."""
    name = kind(stage)
    found = _STAGES[name](metrics) if name in _STAGES else {}
    return {f"{name}/{key}": value for key, value in found.items() if value is not None}


def _eval(metrics: dict[str, Any]) -> dict[str, float | None]:
    by_category = {
        f"accuracy/{_OTHER.sub('_', name)[:100]}": part["accuracy"] for name, part in metrics["by_category"].items()
    }
    truncated = _share(metrics["truncated"], metrics["items"])
    return {"accuracy": metrics["accuracy"], "interval95": metrics["interval95"], "truncated": truncated} | by_category


def _probe(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {
        "mastered": metrics["accuracy"],
        "mean_perplexity_mastered": metrics["mean_perplexity_mastered"] or None,
        "truncated": _share(metrics["truncated"], metrics["samples"]),
        "drafted": _share(metrics["drafted_tokens"], metrics["tokens"]),
    }


def _judge(metrics: dict[str, Any]) -> dict[str, float | None]:
    verdicts = ("prediction_wrong", "label_wrong", "both_correct", "both_wrong", "undecided")
    shares = {f"share/{name}": _share(metrics[name], metrics["mismatches"]) for name in verdicts}
    agreement = metrics["agreement"] if metrics["judged"] else None
    return {"mismatches": metrics["mismatches"], "agreement": agreement, "error_seeds": metrics["error_seeds"]} | shares


def _expand(metrics: dict[str, Any]) -> dict[str, float | None]:
    tiers = ("parse", "rules", "judge", "duplicate")
    rejected = {f"rejected/{tier}": _share(metrics[f"rejected_{tier}"], metrics["generated"]) for tier in tiers}
    acceptance = metrics["acceptance"] if metrics["generated"] else None
    return {"acceptance": acceptance, "accepted": metrics["accepted"]} | rejected


def _compose(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {f"share/{part['part']}": _share(part["taken"], metrics["samples"]) for part in metrics["parts"]}


def _score(metrics: dict[str, Any]) -> dict[str, float | None]:
    repair = {f"repair/{name}": metrics["label_repair"][name] for name in ("precision", "recall", "repaired", "harm")}
    noise = {f"noise/{when}": metrics[f"noise_{when}"]["share"] for when in ("before", "after")}
    return repair | noise | {"expansion/valid": metrics.get("expansion", {}).get("valid")}


def _warmup(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {"loss_first": metrics["loss_first"], "loss_last": metrics["loss_last"]}


_STAGES = {
    "eval": _eval, "probe": _probe, "judge": _judge, "expand": _expand, "compose": _compose, "score": _score,
    "warmup": _warmup,
}  # fmt: skip


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
