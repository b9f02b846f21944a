"""A policy a third as large as the embedded judge, for a loop whose judge and generator know more than it does.

    python benchmarks/small_policy.py --out FOLDER

The embedded model's recipe at half its width, from nothing, with the same tokenizer: answers only, neither judging nor
expanding, and the policy's bad habits at the end. Rerun to resume. Made in about an hour of one core.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from looptool_jax.loop.warmup import NanoConfig, train_nano


def recipe() -> NanoConfig:
    """Stages 1, 2 and 6 of the recipe and, between them, one on the world's own categories."""
    cfg = NanoConfig()
    single, easy, *_, careless = cfg.stages
    stages = (single, easy, replace(easy, steps=1500, categories=None, prompt_weight=0.1), careless)
    never = len(stages) + 1
    return replace(cfg, hidden_size=64, intermediate_size=192, stages=stages, judge_stage=never, mistakes_from=never)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    train_nano(recipe(), args.out, lambda row: print(row, flush=True))


if __name__ == "__main__":
    main()
