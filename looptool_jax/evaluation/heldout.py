"""Held-out accuracy: greedy answers under the strict matcher, over all items and by category."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from looptool_jax.data.store import join, write_jsonl
from looptool_jax.inference.answers import NO_ANSWERS, Answer, AnswerConfig, Answerer, label_and_last
from looptool_jax.limits import at_least
from looptool_jax.parallel.chunks import Watch, process_in_chunks
from looptool_jax.toolcall import Sample, match

TRUNCATED = "truncated at the token limit"


@dataclass
class EvalConfig:
    """answers: engine sizes. chunk: samples committed at once. drafts: check labels and earlier answers, as probing
    does; the answers are the same."""

    answers: AnswerConfig = field(default_factory=AnswerConfig)
    chunk: int = 512
    drafts: bool = True

    def __post_init__(self) -> None:
        at_least("evaluate.chunk", self.chunk, 1)


def evaluate(
    policy: Answerer,
    samples: Sequence[Sample],
    cfg: EvalConfig,
    out: str,
    watch: Watch,
    last: Mapping[str, Sequence[int]] = NO_ANSWERS,
) -> dict[str, Any]:
    """Accuracy on the samples; writes `out/results.jsonl`, a row an item, and returns the metrics.

    last: token ids of an earlier policy's answers, by the sample's id.
    interval95 is the half-width of the normal 95 % interval of the accuracy.
    Killed and called again with the same arguments, it continues at the first chunk that is not committed.
    """

    def work(chunk: Sequence[Sample]) -> list[dict[str, Any]]:
        drafts = label_and_last(policy, chunk, last) if cfg.drafts else None
        answers = policy.greedy(chunk, cfg.answers, watch.tokens, drafts)
        watch.advance(len(chunk))
        return [_result(sample, answer) for sample, answer in zip(chunk, answers, strict=True)]

    rows = process_in_chunks(samples, cfg.chunk, join(out, "progress.jsonl"), work, watch)
    write_jsonl(join(out, "results.jsonl"), rows)
    counts = Counter(row["category"] for row in rows)
    right = Counter(row["category"] for row in rows if row["correct"])
    accuracy = sum(right.values()) / max(1, len(rows))
    return {
        "items": len(rows),
        "accuracy": round(accuracy, 6),
        "interval95": round(1.96 * math.sqrt(accuracy * (1 - accuracy) / max(1, len(rows))), 6),
        "truncated": sum(row["reason"] == TRUNCATED for row in rows),
        "by_category": {
            name: {"items": counts[name], "accuracy": round(right[name] / counts[name], 6)} for name in sorted(counts)
        },
    }


def _result(sample: Sample, answer: Answer) -> dict[str, Any]:
    outcome = match(answer.text, sample.target, sample.tools)
    whole = answer.finish == "stop"
    return {
        "id": sample.id, "category": sample.category, "correct": outcome.ok and whole,
        "reason": outcome.reason if whole else TRUNCATED, "answer": answer.text, "ids": answer.tokens,
    }  # fmt: skip
