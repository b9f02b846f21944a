"""The tables of a BFCL evaluation."""

from __future__ import annotations

from typing import Any

from looptool_jax.evaluation.bfcl.data import CATEGORIES
from looptool_jax.report.tables import Table


def bfcl_tables(scores: dict[str, Any]) -> list[Table]:
    """Accuracy by category and the averages, under both modes."""
    categories, averages = scores["categories"], scores["averages"]
    partial = any(part["rows"] < CATEGORIES[name].rows for name, part in categories.items())
    by_category = Table(
        "BFCL",
        ["category", "rows", "bfcl", "fixed", "unreadable", "truncated", "prompt too long"],
        [
            [
                name, str(part["rows"]), _percent(part["accuracy"]), _percent(part["fixed"]),
                *(_percent(part[key] / part["rows"]) for key in ("unreadable", "truncated", "unanswered")),
            ]
            for name, part in categories.items()
        ],
        "bfcl: the released verdict, in which an unreadable call counts as a refusal; fixed: a fair one."
        + (" Not all rows of every category: no leaderboard figure." if partial else ""),
    )  # fmt: skip
    average = Table(
        "Averages",
        ["", "bfcl", "fixed"],
        [[name, _percent(value), _percent(averages["fixed"][name])] for name, value in averages["bfcl"].items()],
        "– : a category of it is not measured. Missing as 0: what bfcl evaluate prints.",
    )
    return [by_category, average]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
