"""Samples of the world with wrong labels among them, the truth beside them, and what a policy answers."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from looptool_jax.data.store import read_jsonl, write_jsonl
from looptool_jax.evaluation.repair import is_right, true_labels
from looptool_jax.inference.answers import Answerer
from looptool_jax.loop.console import Console
from looptool_jax.loop.probe import Probe, probe
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.toolcall import Sample, Target, match
from looptool_jax.world import generate, inject

SEED = 4242  # of the world and of the noise: neither a run's nor the warm-up's


class Labelled(NamedTuple):
    """labels: the true ones, by sample. probes: the policy's answers to the noisy samples."""

    samples: list[Sample]
    noisy: list[Sample]
    labels: dict[str, Target]
    probes: list[Probe]


def arguments(description: str | None, samples: int, noise: list[float]) -> argparse.ArgumentParser:
    """The arguments of `labelled`; overrides are those of the quickstart's configuration."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="heldout", choices=("heldout", "train"))
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument(
        "--noise", type=float, nargs=len(noise) if len(noise) == 1 else "+", default=noise,
        help="share of the labels that are made wrong",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*")
    return parser


def labelled(
    policy: Answerer, cfg: RunConfig, args: argparse.Namespace, noise: float, out: str, console: Console
) -> Labelled:
    """Samples that fit the policy's prompts, and its answers to them. Writes into the folder `out`."""
    longest = cfg.train.answers.prompt_tokens
    samples = [s for s in generate(args.split, args.samples, SEED) if policy.prompt_length(s) <= longest]
    noisy, truth = inject(samples, noise, SEED)
    write_jsonl(f"{out}/truth.jsonl", [row.to_json() for row in truth])
    probe(policy, noisy, cfg.probe, cfg.reward, f"{out}/probe", console)
    probes = [Probe.from_json(row) for row in read_jsonl(f"{out}/probe/probes.jsonl")]
    return Labelled(samples, noisy, true_labels(noisy, f"{out}/truth.jsonl"), probes)


def true_verdict(sample: Sample, answer: str, labels: dict[str, Target]) -> str:
    """What a judge who knew the truth would say of the sample's label and an answer."""
    label_right = is_right(sample, sample.target, labels)
    if match(answer, labels[sample.id], sample.tools).ok:
        return "both_correct" if label_right else "label_wrong"
    return "prediction_wrong" if label_right else "both_wrong"
