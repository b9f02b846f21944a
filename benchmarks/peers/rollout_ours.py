"""Our engine: `shared`, a slot for each prompt with all of its answers, or `unshared`, a slot for every answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
from meter import Meter

from looptool_jax.inference.batch import Request, generate
from looptool_jax.inference.engine import DecoderEngine
from looptool_jax.models import hf
from looptool_jax.models.config import DecoderConfig


def main() -> None:
    problem, variant, repeats = json.loads((Path(sys.argv[1]) / "problem.json").read_text()), sys.argv[2], sys.argv[3]
    engine, params, requests = build(problem, variant == "shared")
    prompts, group, answer = problem["prompts"], problem["group"], problem["answer"]
    [greedy, *_] = generate(engine, params, requests(prompts[:1], 0.0, problem["greedy"]))[0]
    meter = Meter()
    meter.warm()
    for _ in range(int(repeats)):
        meter.start()
        groups = generate(engine, params, requests(prompts, 1.0, answer))
        meter.stop()
    generated = sum(len(answer.tokens) for group in groups for answer in group)
    assert generated == len(prompts) * group * answer
    meter.report(greedy=greedy.tokens, generated=generated)


def build(problem, shared):
    """The engine, its weights, and what makes requests of prompts. No token ends an answer."""
    cfg, group = DecoderConfig.from_pretrained(problem["model"]), problem["group"]
    engine = DecoderEngine(
        cfg, slots=1 if shared else group, group=group if shared else 1, prompt_len=problem["prompt"],
        answer_len=problem["answer"], eos_ids=(-1,), pad_id=0,
    )  # fmt: skip
    params = engine.load_params(jax.block_until_ready(hf.load_params(problem["model"], cfg)))

    def requests(prompts, temperature, tokens):
        rows = [(i, j) for i in range(len(prompts)) for j in range(1 if shared else group)]
        return [Request(f"{i} {j}", prompts[i], (i, j), temperature, tokens) for i, j in rows]

    return engine, params, requests


if __name__ == "__main__":
    main()
