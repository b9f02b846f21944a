"""One GRPO update (forward, backward, AdamW) against TRL's and Tunix's: seconds and memory, and whether they agree.

    python benchmarks/grpo_step.py --peers DIR [--layers 6] [--rounds 3] [--repeats 1] [--json FILE]

benchmarks/peers/README.md says how DIR is made; without it only our own arms run. All arms start from the same random
weights of SmolLM2-135M's shape and update on the same prompt, its answers and their advantages, in float32 on the CPU.
Arms take turns, each in a process of its own whose first update (compilation) is not counted. Gradients are compared by
their norm and by AdamW's first moment of one matrix behind the first update.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from peers.alternate import Arm, alternate, memory, table, timing

from looptool_jax.models import decoder, hf
from looptool_jax.models.config import DecoderConfig
from looptool_jax.training.flops import update_flops

SIZES = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
HEADS = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64}
ARMS = [
    Arm("ours shared", "step_ours.py", "shared"),
    Arm("ours shared, remat none", "step_ours.py", "shared:none"),
    Arm("ours shared, remat full", "step_ours.py", "shared:full"),
    Arm("ours repeated", "step_ours.py", "repeated"),
    Arm("ours repeated, all answers at a time", "step_ours.py", "repeated-all"),
    Arm("TRL float32", "step_trl.py", "float32:1", "trl"),
    Arm("TRL bfloat16", "step_trl.py", "bfloat16:1", "trl"),
    Arm("Tunix", "step_tunix.py", "1", "tunix"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--layers", type=int, default=6, help="SmolLM2-135M has 30")
    parser.add_argument("--prompt", type=int, default=1536, help="tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--group", type=int, default=16, help="answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="measured updates of a process")
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    args = parser.parse_args()
    cfg = DecoderConfig("llama", **SIZES, **HEADS, num_layers=args.layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf.save_pretrained(decoder.init_params(cfg, jax.random.key(0)), cfg, folder / "model")
        write_problem(folder / "problem.npz", args.prompt, args.answer, args.group)
        runs = alternate(ARMS, folder, args.peers, args.rounds, args.repeats)
        moments = {arm: np.load(folder / found[0]["moment"]) for arm, found in runs.items()}
    apart = {arm: difference(moment, moments["ours shared"]) for arm, moment in moments.items()}
    shared, repeated = flops(cfg, args.prompt, args.answer, args.group)
    ratio = repeated / shared
    print(f"{args.layers} layers, a prompt of {args.prompt} tokens, {args.group} answers of {args.answer}")
    print(f"floating-point operations by shapes: shared {shared:.2e}, repeated {repeated:.2e}, {ratio:.2f} times\n")
    print(agreement(runs, apart))
    print()
    print(speed(runs))
    if args.json:
        sizes = {name: getattr(args, name) for name in ("layers", "prompt", "answer", "group")}
        counted = {"shared": shared, "repeated": repeated}
        found = {"sizes": sizes, "flops": counted, "moment_apart": apart, "runs": runs}
        args.json.write_text(json.dumps(found, indent=1))


def write_problem(path: Path, prompt: int, answer: int, group: int) -> None:
    """Random ids (0 and 1 are left for padding and end); advantages that do not cancel, so that the loss is not 0."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, SIZES["vocab_size"], prompt + group * answer)
    np.savez(
        path,
        prompt=ids[:prompt],
        answers=ids[prompt:].reshape(group, answer),
        advantages=rng.normal(size=group).astype(np.float32),
    )


def flops(cfg: DecoderConfig, prompt: int, answer: int, group: int) -> tuple[int, int]:
    """Of the matrix products, forward and backward, shared and repeated. Nothing is computed twice."""
    return update_flops(cfg, prompt, [answer] * group), group * update_flops(cfg, prompt, [answer])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def agreement(runs: dict[str, list[dict[str, Any]]], apart: dict[str, float]) -> str:
    rows = []
    for arm, (found, *_) in runs.items():
        rows.append([arm, f"{found['loss']:.6f}", f"{found['grad_norm']:.6f}", f"{apart[arm]:.1e}"])
    return table(["arm", "loss", "gradient norm", "a matrix's first moment apart"], rows)


def speed(runs: dict[str, list[dict[str, Any]]]) -> str:
    base = timing(runs["ours shared"])[0]
    rows = []
    for arm, found in runs.items():
        median, cell = timing(found)
        peak, beyond = memory(found)
        rows.append([arm, cell, f"{median / base:.2f}", f"{peak:.2f}", f"{beyond:.2f}"])
    return table(["arm", "seconds an update", "of ours shared", "peak GB", "of it for the update"], rows)


if __name__ == "__main__":
    main()
