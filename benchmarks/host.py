"""What the host does between device calls: milliseconds of a GRPO batch.

    python benchmarks/host.py [--samples 128] [--group 16] [--tokenizer FOLDER --format NAME]

Samples of the world; every answer is its label as the model would write it, so that parsing and matching have all to
do. Reading prompts is rendering and encoding them; checking an answer is decoding its tokens, parsing and matching it.
Rows are those of `packed_rows`. One process, as in a run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.resources import files

from peers.alternate import table

from looptool_jax.toolcall import ChatTokenizer, match
from looptool_jax.training.rows import Group, packed_rows
from looptool_jax.world import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--tokenizer", default=str(files("looptool_jax.nano") / "policy"))
    parser.add_argument("--format", default="qwen3")
    args = parser.parse_args()
    tokenizer = ChatTokenizer.from_pretrained(args.tokenizer, args.format)
    samples = generate("train", args.samples, 1)

    def read() -> list[list[int]]:
        return [tokenizer.encode_prompt(sample.messages, sample.tools, False) for sample in samples]

    prompts, answers = read(), [tokenizer.encode_target(sample.target) for sample in samples]

    def check() -> None:
        for sample, answer in zip(samples, answers, strict=True):
            for _ in range(args.group):
                text = tokenizer.format.canonical(tokenizer.decode(answer))
                assert match(text, sample.target, sample.tools).ok

    groups = [
        Group(prompt, [answer] * args.group, [0.0] * args.group)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens = sum(map(len, prompts))
    print(f"{len(samples)} prompts of {tokens / len(samples):.0f} tokens, {args.group} answers to each\n")
    rows = []
    for name, work, count in (
        ("prompts read", read, len(samples)),
        ("answers checked", check, len(samples) * args.group),
        ("rows packed", lambda: packed_rows(groups, max(16384, longest), 1), len(samples)),
    ):
        seconds = statistics.median(timed(work) for _ in range(5))
        rows.append([name, f"{count}", f"{seconds:.3f}", f"{1000 * seconds / count:.3f}"])
    print(table(["", "how many", "seconds", "ms each"], rows))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
