"""GCP: greedy capability probing (paper, section 4.2, Algorithm 1).

The policy answers every sample of D_j greedily. An answer that matches its label is mastered and gets a
perplexity; any other goes to the judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from looptool_jax.data.store import join, write_jsonl
from looptool_jax.inference.answers import NO_ANSWERS, AnswerConfig, Answerer, label_and_last
from looptool_jax.limits import at_least
from looptool_jax.loop.console import Console
from looptool_jax.loop.reward import RewardConfig, score
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.toolcall import Sample


@dataclass
class ProbeConfig:
    """answers: engine sizes. chunk: samples committed at once. drafts: check the label, and the last answer where there
    is one, as drafts of the answer, which gives the same answers sooner; false decodes all step by step."""

    answers: AnswerConfig = field(default_factory=AnswerConfig)
    chunk: int = 512
    drafts: bool = True

    def __post_init__(self) -> None:
        at_least("probe.chunk", self.chunk, 1)


@dataclass(frozen=True)
class Probe:
    """A greedy answer with its outcome. perplexity: exp(-1/L Σ log p(o_i | ...)) over the whole output (Eq. 3),
    the end token and any thinking included; ids: its L tokens. drafted: how many of them came from a draft and were not
    decoded; near_tie: decided step by step, for two tokens were nearly equally probable."""

    id: str
    answer: str
    correct: bool
    reason: str
    perplexity: float
    ids: list[int]
    finish: str
    drafted: int = 0
    near_tie: bool = False

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_json(row: dict[str, Any]) -> Probe:
        return Probe(**row)


def probe(
    policy: Answerer,
    samples: Sequence[Sample],
    cfg: ProbeConfig,
    reward: RewardConfig,
    out: str,
    console: Console,
    last: Mapping[str, Sequence[int]] = NO_ANSWERS,
) -> dict[str, Any]:
    """Probe the policy on all samples; writes `out/probes.jsonl` in the samples' order and returns the metrics.

    Copies of error seeds (the ablation that repeats them) are left out: the seeds themselves are among the samples.
    last: token ids of earlier answers, by the sample's id.
    Killed and called again with the same arguments, it continues at the first chunk that is not committed.
    """

    def work(chunk: Sequence[Sample]) -> list[dict[str, Any]]:
        drafts = label_and_last(policy, chunk, last) if cfg.drafts else None
        answers = policy.greedy(chunk, cfg.answers, console.tokens, drafts)
        rows = []
        for sample, answer in zip(chunk, answers, strict=True):
            outcome = score(answer.text, answer.finish, sample, reward)
            mean_logprob = sum(answer.logprobs) / max(1, len(answer.logprobs))
            rows.append(
                Probe(
                    sample.id, answer.text, outcome.ok, outcome.reason, round(math.exp(-mean_logprob), 6),
                    answer.tokens, answer.finish, answer.drafted, answer.near_tie,
                ).to_json()
            )  # fmt: skip
        console.advance(len(chunk))
        return rows

    samples = [sample for sample in samples if sample.origin.kind != "repeated"]
    order = sorted(range(len(samples)), key=lambda i: samples[i].id)  # samples of one dialogue come together
    done = process_in_chunks([samples[i] for i in order], cfg.chunk, join(out, "progress.jsonl"), work, console)
    rows = [row for _, row in sorted(zip(order, done, strict=True), key=itemgetter(0))]
    write_jsonl(join(out, "probes.jsonl"), rows)
    correct = [row for row in rows if row["correct"]]
    return {
        "samples": len(rows),
        "mastered": len(correct),
        "accuracy": round(len(correct) / max(1, len(rows)), 6),
        "truncated": sum(row["finish"] == "length" for row in rows),
        "mean_perplexity_mastered": round(sum(row["perplexity"] for row in correct) / max(1, len(correct)), 6),
        "tokens": sum(len(row["ids"]) for row in rows),
        "drafted_tokens": sum(row["drafted"] for row in rows),
        "near_ties": sum(row["near_tie"] for row in rows),
    }
