"""Greedy answers to BFCL's rows, scored as the released evaluation does and fairly.

Prompts are the model's own chat format with the documents normalised to JSON Schema, as everywhere in this program. The
released harness shows the raw documents (types such as dict and float) with a sentence on the language, so figures of
the leaderboard can differ by the prompt alone: compare models under one harness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from looptool_jax.data.store import dump_json, join, write_bytes, write_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES, BfclRow
from looptool_jax.evaluation.bfcl.dialogue import STEPS, Trajectory, converse
from looptool_jax.evaluation.bfcl.multi_turn import MultiTurnRow, match_multi_turn
from looptool_jax.evaluation.bfcl.scores import AGENTIC, averages, official_overall
from looptool_jax.evaluation.kept_answers import Given, KeptAnswers
from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.toolcall import Match, ParseFailure, match_bfcl, parse


def evaluate(
    policy: Answerer,
    rows: Sequence[BfclRow],
    dialogues: Sequence[MultiTurnRow],
    cfg: AnswerConfig,
    out: str,
    on_tokens: Callable[[int], None],
    on_done: Callable[[int], None],
) -> dict[str, Any]:
    """Answer and score the rows. Writes `out/results.jsonl`, a row a result, and `out/scores.json`, what is returned:
    of each category its rows, accuracy under both modes, unreadable, truncated and unanswered rows; the averages.

    A row whose prompt is longer than `cfg.prompt_tokens`, or becomes so, counts as wrong. An answer that was cut at
    `cfg.answer_tokens` is scored as it stands (bfcl) or is wrong (fixed). on_done: told of rows and turns that
    are over. Answers are kept in `out/progress.jsonl`: killed and called again alike, it continues there.
    """
    kept = KeptAnswers(policy, cfg, out, on_tokens)
    answers = kept.ask([row.sample for row in rows], on_done)
    trajectories = converse(dialogues, kept.ask, on_done)
    results = [_result(row, answer, cfg) for row, answer in zip(rows, answers, strict=True)]
    results += [_dialogue_result(*pair, cfg) for pair in zip(dialogues, trajectories, strict=True)]
    write_jsonl(join(out, "results.jsonl"), results)
    scores = summary(results)
    write_bytes(join(out, "scores.json"), dump_json(scores) + b"\n")
    return scores


def _result(row: BfclRow, answer: Given, cfg: AnswerConfig) -> dict[str, Any]:
    released, fair = match_bfcl(answer.text, row.target), match_bfcl(answer.text, row.target, "fixed")
    if reason := _unfinished(answer.finish, cfg):
        fair = Match(False, reason)
        released = released if answer.finish == "length" else fair
    unreadable = isinstance(parse(answer.text), ParseFailure)
    return _written(row.sample.id, row.sample.category, released, fair, unreadable, answer.finish, answer.text)


def _dialogue_result(row: MultiTurnRow, trajectory: Trajectory, cfg: AnswerConfig) -> dict[str, Any]:
    turns = trajectory.turns
    released, fair = match_multi_turn(row, turns), match_multi_turn(row, turns, "fixed")
    if reason := _unfinished(trajectory.finish, cfg):
        fair = Match(False, reason)
        released = fair if trajectory.finish == "prompt_too_long" else released
    unreadable = any(isinstance(parse(answer), ParseFailure) for answers in turns for answer in answers)
    return _written(row.id, row.category, released, fair, unreadable, trajectory.finish, turns)


def _unfinished(finish: str, cfg: AnswerConfig) -> str:
    """Why an answer or a dialogue is not whole, "" if it is."""
    return {
        "prompt_too_long": f"the prompt is longer than {cfg.prompt_tokens} tokens",
        "length": "truncated at the token limit",
        "steps": f"more than {STEPS - 1} steps in a turn",
    }.get(finish, "")


def _written(
    id_: str, category: str, released: Match, fair: Match, unreadable: bool, finish: str, answer: Any
) -> dict[str, Any]:
    return {
        "id": id_, "category": category, "correct": released.ok, "reason": released.reason, "correct_fixed": fair.ok,
        "reason_fixed": fair.reason, "unreadable": unreadable, "finish": finish, "answer": answer,
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
    modes = {}
    for mode, key in (("bfcl", "accuracy"), ("fixed", "fixed")):
        accuracy = {name: part[key] for name, part in categories.items()}
        modes[mode] = {**averages(accuracy, rows), "v4 Overall, missing as 0": official_overall(accuracy, rows)}
    missing = [name for name in (*CATEGORIES, AGENTIC) if name not in categories]
    return {"categories": categories, "averages": modes, "missing": missing}
