"""Greedy answers to BFCL's single-turn rows, scored as the released evaluation does and fairly.

Prompts are the model's own chat format with the documents normalised to JSON Schema, as everywhere in this program. The
released harness shows the raw documents (types such as dict and float) with a sentence on the language, so figures of
the leaderboard can differ by the prompt alone: compare models under one harness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from looptool_jax.data.store import dump_json, join, write_bytes, write_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES, BfclRow
from looptool_jax.evaluation.bfcl.scores import averages
from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.toolcall import Match, ParseFailure, match_bfcl, parse


def evaluate(
    policy: Answerer, rows: Sequence[BfclRow], cfg: AnswerConfig, out: str, on_tokens: Callable[[int], None]
) -> dict[str, Any]:
    """Answer and score the rows. Writes `out/results.jsonl`, a row an answer, and `out/scores.json`, what is returned:
    of each category its rows, accuracy under both modes, unreadable, truncated and unanswered answers; the averages.

    A row whose prompt is longer than `cfg.prompt_tokens` is not answered and counts as wrong. An answer that was cut at
    `cfg.answer_tokens` is scored as it stands (bfcl) or is wrong (fixed).
    """
    fits = [row for row in rows if policy.prompt_length(row.sample) <= cfg.prompt_tokens]
    answers = policy.greedy([row.sample for row in fits], cfg, on_tokens)
    found = {id(row): answer for row, answer in zip(fits, answers, strict=True)}
    results = []
    for row in rows:
        answer = found.get(id(row))
        if answer is None:
            unanswered = Match(False, f"the prompt is longer than {cfg.prompt_tokens} tokens")
            results.append(_result(row, "", "prompt_too_long", unanswered, unanswered))
            continue
        released, fair = match_bfcl(answer.text, row.target), match_bfcl(answer.text, row.target, "fixed")
        if answer.finish != "stop":
            fair = Match(False, "truncated at the token limit")
        results.append(_result(row, answer.text, answer.finish, released, fair))
    write_jsonl(join(out, "results.jsonl"), results)
    scores = summary(results)
    write_bytes(join(out, "scores.json"), dump_json(scores) + b"\n")
    return scores


def _result(row: BfclRow, text: str, finish: str, released: Match, fair: Match) -> dict[str, Any]:
    return {
        "id": row.sample.id, "category": row.sample.category, "correct": released.ok, "reason": released.reason,
        "correct_fixed": fair.ok, "reason_fixed": fair.reason, "unreadable": isinstance(parse(text), ParseFailure),
        "finish": finish, "answer": text,
    }  # fmt: skip


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of results."""
    categories: dict[str, dict[str, Any]] = {}
    for name in CATEGORIES:
        if part := [result for result in results if result["category"] == name]:
            categories[name] = {
                "rows": len(part),
                "accuracy": sum(result["correct"] for result in part) / len(part),
                "fixed": sum(result["correct_fixed"] for result in part) / len(part),
                "unreadable": sum(result["unreadable"] for result in part),
                "truncated": sum(result["finish"] == "length" for result in part),
                "unanswered": sum(result["finish"] == "prompt_too_long" for result in part),
            }
    rows = {name: part["rows"] for name, part in categories.items()}
    modes = {
        mode: averages({name: part[key] for name, part in categories.items()}, rows)
        for mode, key in (("bfcl", "accuracy"), ("fixed", "fixed"))
    }
    return {"categories": categories, "averages": modes}
