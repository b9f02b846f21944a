"""Greedy answers to ACEBench's rows, scored as the released evaluation does and fairly.

Answers are read by the strict parser and written as the benchmark's `[name(arg=...)]` for the released rules. Steps of
dialogues come with the right steps before them, as the data has them. Prompts are those of `data`, so figures of the
leaderboard can differ by the prompt alone: compare models under one harness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from looptool_jax.data.store import dump_json, join, write_bytes, write_jsonl
from looptool_jax.evaluation.acebench import agent
from looptool_jax.evaluation.acebench.data import CATEGORIES, AceRow
from looptool_jax.evaluation.acebench.scores import accuracy, averages
from looptool_jax.evaluation.kept_answers import KeptAnswers
from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.toolcall import Match, ParseFailure, Sample, match_acebench, parse
from looptool_jax.toolcall.acebench_match import match_official_text

MODES = {"official": "correct", "fixed": "correct_fixed", "ceiling": "gold"}


def evaluate(
    policy: Answerer,
    rows: Sequence[AceRow],
    cfg: AnswerConfig,
    out: str,
    on_tokens: Callable[[int], None],
    on_done: Callable[[int], None],
    tasks: Sequence[agent.AgentRow] = (),
    classes: dict[str, type] | None = None,
) -> dict[str, Any]:
    """Answer and score the rows, and agent tasks with their scenarios' classes. Writes `out/results.jsonl`, a row an
    answer or a task, and `out/scores.json`, what is returned: of each category its rows, accuracy under both modes,
    the ceiling (the labels themselves under the released rules), unreadable, truncated and unanswered answers; the
    averages.

    A row whose prompt is longer than `cfg.prompt_tokens` is not answered and counts as wrong. An answer that was cut at
    `cfg.answer_tokens` is scored as it stands (official) or is wrong (fixed). on_done: told of rows and tasks that are
    over. Answers are kept in `out/progress.jsonl`: killed and called again alike, it continues there.
    """
    kept = KeptAnswers(policy, cfg, out, on_tokens)
    results = []
    for row, answer in zip(rows, kept.ask([row.sample for row in rows], on_done), strict=True):
        if answer.finish == "prompt_too_long":
            unanswered = Match(False, f"the prompt is longer than {cfg.prompt_tokens} tokens")
            results.append(_result(row, "", "prompt_too_long", unanswered, unanswered))
            continue
        released, fair = match_acebench(answer.text, row.target), match_acebench(answer.text, row.target, "fixed")
        if answer.finish != "stop":
            fair = Match(False, "truncated at the token limit")
        results.append(_result(row, answer.text, answer.finish, released, fair))
    if tasks:
        results += _tasks(tasks, classes or {}, agent.play(tasks, classes or {}, kept.ask, on_done))
    write_jsonl(join(out, "results.jsonl"), results)
    scores = summary(results)
    write_bytes(join(out, "scores.json"), dump_json(scores) + b"\n")
    return scores


def _tasks(
    tasks: Sequence[agent.AgentRow], classes: dict[str, type], played: Sequence[tuple[agent.Scenario, Sample, str]]
) -> list[dict[str, Any]]:
    return [
        {
            "id": row.sample.id, "category": row.sample.category, "correct": agent.official_match(scenario, row),
            "correct_fixed": end == "stop" and agent.fixed_match(scenario, row),
            "gold": agent.official_match(agent.gold_scenario(row, classes), row),
            "milestones": agent.milestones_met(scenario, row), "unreadable": False, "finish": end,
            "answer": [message.to_json() for message in dialogue.messages[len(row.sample.messages) :]],
        }
        for row, (scenario, dialogue, end) in zip(tasks, played, strict=True)
    ]  # fmt: skip


def _result(row: AceRow, text: str, finish: str, released: Match, fair: Match) -> dict[str, Any]:
    return {
        "id": row.sample.id, "category": row.sample.category, "correct": released.ok, "reason": released.reason,
        "correct_fixed": fair.ok, "reason_fixed": fair.reason, "gold": match_official_text(row.gold, row.target).ok,
        "unreadable": isinstance(parse(text), ParseFailure), "finish": finish, "answer": text,
    }  # fmt: skip


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of results."""
    categories: dict[str, dict[str, Any]] = {}
    for name, category in CATEGORIES.items():
        if part := [result for result in results if result["category"] == name]:
            ids = [result["id"] for result in part]
            categories[name] = {
                "rows": len(part),
                **{mode: accuracy(category, ids, [result[key] for result in part]) for mode, key in MODES.items()},
                "unreadable": sum(result["unreadable"] for result in part),
                "truncated": sum(result["finish"] == "length" for result in part),
                "unanswered": sum(result["finish"] == "prompt_too_long" for result in part),
            }
            if category.kind == "agent":
                categories[name]["milestones"] = sum(result["milestones"] for result in part) / len(part)
    modes = {mode: averages({name: part[mode] for name, part in categories.items()}) for mode in MODES}
    return {"categories": categories, "averages": modes}
