"""How far one pass and step-by-step decoding are apart, and what the bound on near ties costs.

    python benchmarks/near_ties.py [--samples 200] [--model nano/policy] [--format qwen3] [--dtypes float32 bfloat16]

A model answers new samples greedily; its answers are then checked as drafts, without a bound and with the
one of the dtype. Printed are answers that differ from step-by-step ones, the largest difference of a log-prob, and how
many answers the bound handed over to step-by-step decoding.
"""

from __future__ import annotations

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from peers.alternate import table

from looptool_jax.inference import drafts
from looptool_jax.inference.answers import Answer, AnswerConfig, Answerer
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.pool import locate
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.world import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--model", default="nano/policy")
    parser.add_argument("--format", default="qwen3")
    parser.add_argument("--thinking", action="store_true", help="prompts that leave the think block to the model")
    parser.add_argument("--prompt-tokens", type=int, default=384)
    parser.add_argument("--dtypes", nargs="+", default=list(drafts.NEAR_TIE))
    args = parser.parse_args()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rows = []
    sizes = AnswerConfig(prompt_tokens=args.prompt_tokens, answer_tokens=112, slots=16)
    for dtype in args.dtypes:
        bound = drafts.NEAR_TIE[dtype]
        policy = Answerer(load_language_model(ModelConfig(locate(args.model), args.format, dtype), mesh), args.thinking)
        samples = [s for s in generate("heldout", 2 * args.samples, 5) if policy.prompt_length(s) <= args.prompt_tokens]
        samples = samples[: args.samples]
        stepwise = policy.greedy(samples, sizes, lambda _: None)
        guesses = [[answer.tokens] for answer in stepwise]
        drafts.NEAR_TIE[dtype] = 0.0
        unbounded = policy.greedy(samples, sizes, lambda _: None, guesses)
        drafts.NEAR_TIE[dtype] = bound
        bounded = policy.greedy(samples, sizes, lambda _: None, guesses)
        rows.append([
            dtype, different(stepwise, unbounded), f"{apart(stepwise, unbounded):.1e}", str(bound),
            different(stepwise, bounded), f"{sum(answer.near_tie for answer in bounded)} of {len(samples)}",
        ])  # fmt: skip
    print(table(["dtype", "differ without a bound", "log-probs apart", "bound", "differ with it", "handed over"], rows))


def different(expected: list[Answer], found: list[Answer]) -> str:
    return f"{sum(a.tokens != b.tokens for a, b in zip(expected, found, strict=True))} of {len(expected)}"


def apart(expected: list[Answer], found: list[Answer]) -> float:
    """The largest difference between log-probs of one token, over the answers that are equal."""
    equal = [(a, b) for a, b in zip(expected, found, strict=True) if a.tokens == b.tokens]
    return max(float(np.abs(np.subtract(a.logprobs, b.logprobs)).max()) for a, b in equal)


if __name__ == "__main__":
    main()
