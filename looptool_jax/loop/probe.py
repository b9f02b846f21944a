"""GCP: greedy capability probing (paper, section 4.2, Algorithm 1).

The policy answers every sample of D_j greedily. An answer that matches its label is mastered and gets a
perplexity; any other goes to the judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from looptool_jax.data.store import join, write_jsonl
from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.limits import at_least
from looptool_jax.loop.chunks import process_in_chunks
from looptool_jax.loop.console import Console
from looptool_jax.loop.reward import RewardConfig, score
from looptool_jax.toolcall import Sample


@dataclass
class ProbeConfig:
    """answers: engine sizes. chunk: samples committed at once."""

    answers: AnswerConfig = field(default_factory=AnswerConfig)
    chunk: int = 512

    def __post_init__(self) -> None:
        at_least("probe.chunk", self.chunk, 1)


@dataclass(frozen=True)
class Probe:
    """A greedy answer with its outcome. perplexity: exp(-1/L Σ log p(o_i | ...)) over the whole output (Eq. 3),
    the end token and any thinking included; tokens: L."""

    id: str
    answer: str
    correct: bool
    reason: str
    perplexity: float
    tokens: int
    finish: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_json(row: dict[str, Any]) -> Probe:
        return Probe(**row)


def probe(
    policy: Answerer, samples: Sequence[Sample], cfg: ProbeConfig, reward: RewardConfig, out: str, console: Console
) -> dict[str, Any]:
    """Probe the policy on all samples; writes `out/probes.jsonl` in the samples' order and returns the metrics.

    Killed and called again with the same arguments, it continues at the first chunk that is not committed.
    """

    def work(chunk: Sequence[Sample]) -> list[dict[str, Any]]:
        answers = policy.greedy(chunk, cfg.answers, console.tokens)
        rows = []
        for sample, answer in zip(chunk, answers, strict=True):
            outcome = score(answer.text, answer.finish, sample, reward)
            mean_logprob = sum(answer.logprobs) / max(1, len(answer.logprobs))
            rows.append(
                Probe(
                    sample.id, answer.text, outcome.ok, outcome.reason, round(math.exp(-mean_logprob), 6),
                    len(answer.tokens), answer.finish,
                ).to_json()
            )  # fmt: skip
        console.advance(len(chunk))
        return rows

    console.expect(len(samples))
    rows = process_in_chunks(samples, cfg.chunk, join(out, "progress.jsonl"), work)
    write_jsonl(join(out, "probes.jsonl"), rows)
    correct = [row for row in rows if row["correct"]]
    return {
        "samples": len(rows),
        "mastered": len(correct),
        "accuracy": round(len(correct) / max(1, len(rows)), 6),
        "truncated": sum(row["finish"] == "length" for row in rows),
        "mean_perplexity_mastered": round(sum(row["perplexity"] for row in correct) / max(1, len(correct)), 6),
        "tokens": sum(row["tokens"] for row in rows),
    }
