"""What wrong labels cost, and what repairing them gives back: GRPO on noisy, repaired and true labels.

    python benchmarks/noise_cost.py SWEEP --out FOLDER [--variant full]

Of every trial of the variant that has judged its first round (a run on the world, with label noise, without a warm-up):
the policy that the run began with is trained for one round on D_1 as it was, on D_1 as the judge of round 1 left it
(labels replaced; in the place of every sample that was set aside another one is repeated), and on D_1 with its true
labels. Same samples but for that, same order, same steps, same random keys. Accuracy is that on the run's held-out
functions and on new requests for the training functions, as in evidence.py; p: of the paired t-test. And how many of
the wrong labels of D_1 some rollout of the run answered as they say. What is trained is not trained again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from evidence import p_value, points, shown
from peers.alternate import table
from trials import ITEMS, QUIET, WORLD_SEED

from looptool_jax.config import load_config
from looptool_jax.data.store import DataError, exists, join, read_jsonl, read_samples, write_jsonl
from looptool_jax.evaluation.heldout import evaluate
from looptool_jax.evaluation.repair import is_right, true_labels
from looptool_jax.evaluation.statistics import mean_over_seeds
from looptool_jax.loop.judge import ErrorSeed
from looptool_jax.loop.keys import random_for
from looptool_jax.loop.manifest import Manifest
from looptool_jax.loop.pool import ModelPool
from looptool_jax.loop.train import pass_rates, train
from looptool_jax.sweep.space import kept_sweep
from looptool_jax.toolcall import Sample
from looptool_jax.world import generate

SETS = ("unseen", "seen")
AGAIN = ".again"  # in the id of a repeated sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--out", required=True)
    parser.add_argument("--variant", default="full")
    args = parser.parse_args()
    trials = [trial for trial in kept_sweep(args.sweep).trials() if trial.group == args.variant]
    found = [
        row for trial in trials for row in trained(join(args.sweep, "trials", trial.name), join(args.out, trial.name))
    ]
    if not found:
        raise SystemExit(f"{args.sweep}: no trial of {args.variant!r} has judged its first round")
    lines = []
    for labels in ("noisy", "repaired", "true"):
        rows = {row["run"]: row for row in found if row["labels"] == labels}
        noisy = {row["run"]: row for row in found if row["labels"] == "noisy"}
        line = [labels, str(len(rows)), shown(mean_over_seeds([row["wrong"] for row in rows.values()]))]
        for key in SETS:
            line.append(shown(mean_over_seeds([row[key] for row in rows.values()])))
            more = mean_over_seeds([row[key] - noisy[run][key] for run, row in rows.items()])
            line.append("–" if labels == "noisy" else f"{points(more)}, p {p_value(more.p)}")
        lines.append(line)
    print(
        table(
            ["labels of D_1", "n", "wrong", "unseen functions", "beyond noisy", "training functions", "beyond noisy"],
            lines,
        )
    )
    told = [rewarded(join(args.sweep, "trials", trial.name)) for trial in trials]
    some, wrong = (sum(each) for each in zip(*told, strict=True))
    print(f"{some} of {wrong} wrong labels earned a reward in round 1")


def rewarded(run: str) -> tuple[int, int]:
    """Of the wrong labels of D_1, those that a rollout answered as labelled, and all; (0, 0) of a run without them."""
    if not Manifest(run).done("round-1/judge"):
        return 0, 0
    labels = true_labels(read_samples(join(run, "seed/pool.jsonl")), join(run, "seed/truth.jsonl"))
    samples = read_samples(join(run, "round-1/data.jsonl"))
    wrong = [sample.id for sample in samples if not is_right(sample, sample.target, labels)]
    rates = pass_rates(join(run, "round-1/train"))
    return sum(rates[id_] > 0 for id_ in wrong), len(wrong)


def trained(run: str, out: str) -> list[dict[str, Any]]:
    """A row for each kind of labels: the share of wrong ones, and the accuracies after a round on them."""
    if not Manifest(run).done("round-1/judge"):
        return []
    cfg = load_config(join(run, "config.yaml"), [f"run_dir={run}"])
    noisy = list(read_samples(join(run, "round-1/data.jsonl")))
    labels = true_labels(read_samples(join(run, "seed/pool.jsonl")), join(run, "seed/truth.jsonl"))
    sets = {
        "noisy": noisy,
        "repaired": repaired(noisy, run),
        "true": [replace(sample, target=labels[sample.id]) for sample in noisy],
    }
    items = {
        "unseen": list(read_samples(join(run, "seed/heldout.jsonl"))),
        "seen": generate("train", ITEMS, WORLD_SEED),
    }
    rows = []
    for name, samples in sets.items():
        folder = join(out, name)
        if exists(done := join(folder, "figures.jsonl")):
            rows += read_jsonl(done)
            continue
        pool = ModelPool(cfg.mesh, folder)
        train(pool.lend(cfg.policy), samples, cfg.train, cfg.reward, cfg.seed, 1, folder, QUIET)
        policy = pool.lend(replace(cfg.policy, path=join(folder, "policy")))
        row: dict[str, Any] = {"run": run, "labels": name}
        seeds = [replace(sample, id=sample.id.partition(AGAIN)[0]) for sample in samples]
        row["wrong"] = sum(not is_right(seed, seed.target, labels) for seed in seeds) / len(seeds)
        for key, asked in items.items():
            row[key] = evaluate(policy, asked, cfg.evaluate, join(folder, key), QUIET)["accuracy"]
        write_jsonl(done, [row])
        rows.append(row)
    return rows


def repaired(noisy: Sequence[Sample], run: str) -> list[Sample]:
    """D_1 behind label verification, every sample in the place that it had."""
    now = {
        row.sample.id: row.sample
        for row in map(ErrorSeed.from_json, read_jsonl(join(run, "round-1/judge/errors.jsonl")))
    }
    verdicts = read_jsonl(join(run, "round-1/judge/judgements.jsonl"))
    gone = {row["id"] for row in verdicts if row["verdict"] in ("both_wrong", "undecided")}
    samples = [replace(sample, target=now[sample.id].target) if sample.id in now else sample for sample in noisy]
    kept = [sample for sample in samples if sample.id not in gone]
    if not kept:
        raise DataError(f"{run}: nothing of D_1 is left")
    again = enumerate(random_for(0, "repeated").choices(kept, k=len(gone)))
    repeats = (replace(sample, id=f"{sample.id}{AGAIN}{i}") for i, sample in again)
    return [next(repeats) if sample.id in gone else sample for sample in samples]


if __name__ == "__main__":
    main()
