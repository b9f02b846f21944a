"""How much of a GRPO step is computed for padding on real tool-call data.

    python benchmarks/padding.py FILE:FORMAT [FILE:FORMAT ...] --tokenizer FOLDER --format qwen3

Files as `looptool import` reads them. Each batch has 128 prompts in a random order, with 16 answers each whose lengths
are those of labels drawn from the same data. `splash` has its prompts and answers aligned as that kernel wants them.
"""

from __future__ import annotations

import argparse
from random import Random

from peers.alternate import table

from looptool_jax.data.importers import import_file
from looptool_jax.toolcall import ChatTokenizer
from looptool_jax.training.rows import Group, alignment, packed_rows

BATCH, GROUP = 128, 16
MICRO_TOKENS = (8192, 16384, 32768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE:FORMAT")
    parser.add_argument("--tokenizer", required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--format", required=True, help="its chat format")
    args = parser.parse_args()
    tokenizer = ChatTokenizer.from_pretrained(args.tokenizer, args.format)
    prompts, labels = [], []
    for name in args.files:
        file, _, kind = name.rpartition(":")
        for sample in import_file(file, kind).samples:
            prompts.append(len(tokenizer.encode_prompt(sample.messages, sample.tools, False)))
            labels.append(len(tokenizer.encode_target(sample.target)) + 1)
    print(f"{len(prompts)} samples; prompts {spread(prompts)}, answers {spread(labels)} tokens\n")
    random = Random(0)
    order = random.sample(range(len(prompts)), len(prompts))
    batches = [
        [Group([0] * prompts[i], [[0] * random.choice(labels) for _ in range(GROUP)], [0.0] * GROUP) for i in part]
        for part in (order[start : start + BATCH] for start in range(0, len(order) - BATCH + 1, BATCH))
    ]
    rows = []
    for tokens in MICRO_TOKENS:
        fitting = [[group for group in batch if len(group.prompt) + max(labels) + 256 <= tokens] for batch in batches]
        cells = []
        for attention in ("xla", "splash"):
            align = alignment(attention, tokens, 0, 0)
            cells.append(share([packed_rows(batch, tokens, 1, align) for batch in fitting]))
        rows.append([f"{tokens}", *cells])
    print(table(["micro_tokens", "padding", "with splash"], rows))


def share(updates: list) -> str:
    """Places without a token, of all places; a prompt that a row repeats counts as padding."""
    places = sum(micro.tokens.size for update in updates for micro in update.micro_batches)
    filled = sum(update.answer_tokens + update.prompt_tokens for update in updates)
    return f"{1 - filled / places:.1%}"


def spread(sizes: list[int]) -> str:
    ordered = sorted(sizes)
    return f"{ordered[0]} to {ordered[-1]} (median {ordered[len(ordered) // 2]})"


if __name__ == "__main__":
    main()
