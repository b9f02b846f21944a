"""ACEBench's averages; Agent's would need multi-turn too (commit 56dd66c; paper, appendix E).

Overall = 0.578 Normal + 0.2676 Special + 0.1545 Agent, each the plain mean of its categories. A multi-turn category
counts dialogues: one is right if all of its steps are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from looptool_jax.evaluation.acebench.data import CATEGORIES, Category

NOT_MEASURED = (
    "Not measured: Agent multi-turn, which needs a second model as the user; "
    "so there is no average of Agent (15 % of the overall score) and no overall score."
)


def accuracy(category: Category, ids: Sequence[str], correct: Sequence[bool]) -> float:
    """Of rows, or where they are steps `..._<dialogue>_<step>` of dialogues."""
    if not category.dialogue:
        return sum(correct) / len(correct)
    dialogues: dict[str, bool] = {}
    for id_, right in zip(ids, correct, strict=True):
        dialogue = id_.rpartition("_")[0]
        dialogues[dialogue] = dialogues.get(dialogue, True) and right
    return sum(dialogues.values()) / len(dialogues)


def averages(accuracies: Mapping[str, float]) -> dict[str, float | None]:
    """Normal and Special; None where a category is missing, which the released scorer counts as 0."""
    out: dict[str, float | None] = {}
    for group in ("normal", "special"):
        values = [accuracies.get(name) for name, category in CATEGORIES.items() if category.group == group]
        known = [value for value in values if value is not None]
        out[group.capitalize()] = sum(known) / len(values) if len(known) == len(values) else None
    return out
