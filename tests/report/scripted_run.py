"""A whole run in a second: the real runner and its stages, with models that answer by rule and no training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace

from looptool_jax.config import keep_config, load_config
from looptool_jax.data.store import read_jsonl, read_samples, write_jsonl
from looptool_jax.inference.answers import Answer
from looptool_jax.loop import runner
from looptool_jax.loop.console import Console
from looptool_jax.loop.prompts import written
from looptool_jax.loop.runner import Runner
from looptool_jax.loop.train import Passed, by_part
from looptool_jax.toolcall import Call, Sample, Target
from looptool_jax.world import Truth

SETTINGS = (
    "judge.confirm=false", "judge.rules_first=false", "expand.verify=rules", "expand.per_error=2",
    "train.batch=4", "data.round_size=24", "data.pool=40", "data.heldout=24", "data.noise=0.25",
)  # fmt: skip
STEPS = 6


class Truths:
    """The right label of every sample of the run, as far as the run's own files tell it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.known: dict[str, Target] = {}

    def of(self, sample: Sample) -> Target:
        if not self.known:
            self.known = {row["sample_id"]: Truth.from_json(row).target for row in self._rows()}
        return self.known.get(sample.id, sample.target)

    def _rows(self):
        file = self.run_dir / "seed/truth.jsonl"
        return read_jsonl(file) if file.exists() else ()


class Policy:
    """Answers right more often from round to round, and never sees that a label is wrong."""

    thinking = False

    def __init__(self, truths: Truths, round_: int, on_prompts, spoil) -> None:
        self.truths, self.round, self.on_prompts, self.spoil = truths, round_, on_prompts, spoil

    def prompt_length(self, sample: Sample) -> int:
        return 100

    def draft(self, target: Target) -> list[int]:
        return [1]

    def greedy(self, samples: Sequence[Sample], cfg, on_tokens, drafts=None) -> list[Answer]:
        self.on_prompts(100 * len(samples))
        return [self._answer(sample) for sample in samples]

    def _answer(self, sample: Sample) -> Answer:
        rng = Random(f"{sample.id} {self.round}")
        target = self.truths.of(sample)
        if rng.random() > 0.4 + 0.2 * self.round:
            if target.calls and rng.random() < 0.7:
                first, *others = target.calls
                changed = {key: value for key, value in first.arguments.items() if rng.random() < 0.6}
                target = Target((Call(first.name, changed | {"note": "now"}), *others))
            else:
                target = Target(text="I cannot say.", intent="answer")
        text = self.spoil(written(target))
        tokens = [1] * (len(text) // 4 + 1)
        return Answer(text, tokens, [-0.05 * (1 + rng.random())] * len(tokens), "stop")


class JudgeAndGenerator:
    """Prefers the response that the truth is among; writes an error seed again, every other time without its label."""

    def __init__(self, truths: Truths, spoil) -> None:
        self.truths, self.spoil = truths, spoil

    def chat(self, requests, cfg, on_tokens, **sampling) -> list[Answer]:
        return [Answer(self._reply(request), [], [], "stop") for request in requests]

    def _reply(self, request) -> str:
        if request.id.rpartition(".r")[2][1:2] == "e":
            number = int(request.id[-1])
            call = '{"name": "no_such_tool", "arguments": {}}' if number else self._label(request)
            return f"INPUT:\nUSER: {self.spoil(f'Once more, please, number {request.id}.')}\nOUTPUT:\n{call}"
        id_, _, order = request.id.rpartition("/")
        first_wrong = (id_ in self.truths.known) == (order == "1")
        tag = "RESPONSE1_INCORRECT" if first_wrong else "RESPONSE2_INCORRECT"
        return f"{self.spoil('One of the two says what the user wants.')}\n[{tag}]"

    def _label(self, request) -> str:
        seed = request.id.rpartition(".r")[0]
        for file in sorted(self.truths.run_dir.glob("round-*/judge/errors.jsonl")):
            for row in read_jsonl(file):
                if row["sample"]["id"] == seed:
                    return "\n".join(json.dumps(call) for call in row["sample"]["target"]["calls"])
        raise LookupError(seed)


def _train(policy, samples, cfg, reward, seed, round_, out, console) -> dict:
    """Steps as training logs them, from a random walk; no weights."""
    rng = Random(round_)
    rows = [
        {
            "step": step, "epoch": 0, "reward": round(0.4 + 0.05 * step * rng.random(), 6), "zero_variance": 0.5,
            "solved": 0.25, "truncated": 0.0, "answer_tokens": 900 + step, "clip_fraction": 0.0,
            "dual_clip_fraction": 0.0, "entropy": rng.random(), "grad_norm": rng.random(), "loss": -rng.random(),
        }
        for step in range(1, STEPS + 1)
    ]  # fmt: skip
    write_jsonl(f"{out}/steps.jsonl", rows)
    passed = [Passed(sample.id, 0, rng.randrange(5), 4) for sample in samples]
    write_jsonl(f"{out}/passed.jsonl", [line._asdict() for line in passed])
    write_jsonl(f"{out}/policy", [])
    console.prompts(2400)
    console.tokens(5400)
    return {
        "steps": STEPS, "reward_first": 0.4, "reward_last": 0.6, "zero_variance": 0.5, "truncated": 0.0,
        "grad_norm": 0.1, "answer_tokens": 5400, "parts": by_part(samples, passed),
    }  # fmt: skip


def make_run(run_dir: Path, monkeypatch, *settings: str, spoil=lambda text: text) -> str:
    """A finished run of two rounds in `run_dir`. spoil: what becomes of texts that models write."""
    cfg = load_config("micro", [*SETTINGS, *settings, f"run_dir={run_dir}"])
    keep_config(cfg)
    run = Runner(cfg, Console(quiet=True))
    truths = Truths(run_dir)

    def lend(model, folder=None) -> Policy:
        return Policy(truths, int(folder.rpartition("round-")[2][0]) if folder else 0, run.console.prompts, spoil)

    run.pool = SimpleNamespace(  # type: ignore[assignment]
        check=lambda model: None, lend=lend, lend_chat=lambda model: JudgeAndGenerator(truths, spoil),
        active_parameters=lambda model: 1_000_000, mesh=run.pool.mesh,
    )  # fmt: skip
    monkeypatch.setattr(runner, "train", _train)
    run.run()
    samples = list(read_samples(str(run_dir / "round-3/data.jsonl")))
    assert len(samples) == cfg.data.round_size or cfg.compose.expanded_part == "drop"
    return str(run_dir)
