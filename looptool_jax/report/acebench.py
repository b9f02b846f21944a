"""The tables of an ACEBench evaluation."""

from __future__ import annotations

from typing import Any

from looptool_jax.evaluation.acebench.data import CATEGORIES
from looptool_jax.report.tables import Table, percent


def acebench_tables(scores: dict[str, Any]) -> list[Table]:
    """Accuracy by category and the averages, under both modes, beside the ceiling of the released rules."""
    categories, averages = scores["categories"], scores["averages"]
    partial = any(part["rows"] < CATEGORIES[name].rows for name, part in categories.items())
    by_category = Table(
        "ACEBench",
        ["category", "rows", "official", "fixed", "ceiling", "unreadable", "truncated", "prompt too long"],
        [
            [
                name, str(part["rows"]), *(percent(part[mode]) for mode in averages),
                *(str(part[key]) for key in ("unreadable", "truncated", "unanswered")),
            ]
            for name, part in categories.items()
        ],
        "official: the released verdict; fixed: a fair one; ceiling: the labels themselves under the released rules. "
        f"Multi-turn counts dialogues.{_milestones(categories)}"
        + (" Not all rows of every category: no leaderboard figure." if partial else ""),
    )  # fmt: skip
    average = Table(
        "Averages",
        ["", *averages],
        [[name, *(percent(values[name]) for values in averages.values())] for name in averages["official"]],
        "– : categories are missing.",
    )
    return [by_category, average]


def _milestones(categories: dict[str, dict[str, Any]]) -> str:
    found = [f" {name}: {percent(part['milestones'])} of milestones met." for name, part in categories.items()
             if "milestones" in part]  # fmt: skip
    return "".join(found)
