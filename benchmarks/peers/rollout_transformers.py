"""`generate` of transformers with several answers a prompt; the variant is the dtype."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from meter import Meter
from transformers import AutoModelForCausalLM


def main() -> None:
    problem, dtype, repeats = json.loads((Path(sys.argv[1]) / "problem.json").read_text()), sys.argv[2], sys.argv[3]
    model = AutoModelForCausalLM.from_pretrained(problem["model"], dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None  # no token ends an answer
    model.generation_config.pad_token_id = 0

    def answers(prompt: list[int], tokens: int, **how: object) -> torch.Tensor:
        ids = torch.tensor([prompt])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **how)
        return found[:, len(prompt) :]

    greedy = answers(problem["prompts"][0], problem["greedy"], do_sample=False)[0].tolist()
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": problem["group"]}
    torch.manual_seed(0)
    meter = Meter()
    meter.warm()
    for _ in range(int(repeats)):
        meter.start()
        generated = sum(answers(prompt, problem["answer"], **sampled).numel() for prompt in problem["prompts"])
        meter.stop()
    assert generated == len(problem["prompts"]) * problem["group"] * problem["answer"]
    meter.report(greedy=greedy, generated=generated)


if __name__ == "__main__":
    main()
