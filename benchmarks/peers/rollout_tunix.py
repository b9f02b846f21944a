"""Tunix's sampler without another server behind it; a prompt's answers are one batch. The variant is not used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from meter import Meter
from step_tunix import llama_of
from tunix.generate.sampler import CacheConfig, Sampler


class Ids:
    """What the sampler takes for a tokenizer: a text is a list of ids. Padding is a token that no prompt has."""

    def encode(self, text: str) -> list[int]:
        return json.loads(text)

    def decode(self, ids: list[int]) -> str:
        return json.dumps(ids)

    def bos_id(self) -> int:
        return 0

    eos_id = pad_id = bos_id


def main() -> None:
    problem, repeats = json.loads((Path(sys.argv[1]) / "problem.json").read_text()), int(sys.argv[3])
    model = llama_of(problem["model"])
    cfg, group = model.config, problem["group"]
    cache = CacheConfig(problem["prompt"] + problem["answer"], cfg.num_layers, cfg.num_kv_heads, cfg.head_dim)
    sampler = Sampler(model, Ids(), cache)

    def answers(prompt: list[int], rows: int, tokens: int, **how: object) -> list[list[int]]:
        """No token ends an answer."""
        texts, longest = [json.dumps(prompt)] * rows, problem["prompt"]
        found = sampler(texts, max_generation_steps=tokens, max_prompt_length=longest, eos_tokens=[-1], **how)
        return [row.tolist() for row in found.tokens]

    [greedy] = answers(problem["prompts"][0], 1, problem["greedy"])
    sampled = {"temperature": 1.0, "top_p": 1.0}
    answers(problem["prompts"][0], group, problem["answer"], **sampled)  # compiles
    meter = Meter()
    meter.warm()
    for repeat in range(repeats):
        meter.start()
        found = [answers(p, group, problem["answer"], seed=repeat, **sampled) for p in problem["prompts"]]
        meter.stop()
    generated = sum(len(row) for rows in found for row in rows)
    assert generated == len(problem["prompts"]) * group * problem["answer"]
    meter.report(greedy=greedy, generated=generated)


if __name__ == "__main__":
    main()
