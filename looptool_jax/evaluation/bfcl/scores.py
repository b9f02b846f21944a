"""BFCL's averages, as far as its categories are measured (v3: gorilla commit a11f16d; v4: bfcl-eval 2026.3.23).

v3: Overall = mean(Non-Live, Live, Multi-Turn). Non-Live is the mean of Simple (itself the mean of Python, Java and
JavaScript), Multiple, Parallel, Parallel-Multiple and Irrelevance; Live weighs its six categories by their rows.
v4: Overall = 10 % Non-Live + 10 % Live + 10 % Irrelevance + 30 % Multi-Turn + 40 % Agentic. Non-Live leaves Irrelevance
out, Live weighs the four categories that want calls, Irrelevance is the mean of its two categories.
In both, Multi-Turn is the mean of its four categories. Agentic (web search and memory) is not measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from looptool_jax.evaluation.bfcl.data import CATEGORIES

AGENTIC = "agentic"
_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_MULTIPLE = ("multiple", "parallel", "parallel_multiple")
_LIVE_CALLS = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_V4_WEIGHTS = (0.1, 0.1, 0.1, 0.3, 0.4)
_MULTI_TURN = tuple(name for name, category in CATEGORIES.items() if category.group == "multi_turn")


def averages(accuracy: Mapping[str, float], rows: Mapping[str, int]) -> dict[str, float | None]:
    """The averages by name, from the accuracy and the number of rows of each category; None where a category of an
    average is missing, which the leaderboard would count as 0 (`official_overall`)."""
    simple = _mean([accuracy.get(name) for name in _SIMPLE])
    calls = [simple, *(accuracy.get(name) for name in _MULTIPLE)]
    irrelevance, live_irrelevance = accuracy.get("irrelevance"), accuracy.get("live_irrelevance")
    multi_turn = _mean([accuracy.get(name) for name in _MULTI_TURN])
    v3 = {
        "v3 Non-Live": _mean([*calls, irrelevance]),
        "v3 Live": _weighted((*_LIVE_CALLS, "live_irrelevance", "live_relevance"), accuracy, rows),
        "v3 Multi-Turn": multi_turn,
    }
    v4 = {
        "v4 Non-Live": _mean(calls),
        "v4 Live": _weighted(_LIVE_CALLS, accuracy, rows),
        "v4 Irrelevance": _mean([irrelevance, live_irrelevance]),
        "v4 Multi-Turn": multi_turn,
        "v4 Agentic": accuracy.get(AGENTIC),
    }
    parts = [value if value is None else value * weight for value, weight in zip(v4.values(), _V4_WEIGHTS, strict=True)]
    v4_overall = None if None in parts else sum(part for part in parts if part is not None)
    return {**v3, "v3 Overall": _mean(list(v3.values())), **v4, "v4 Overall": v4_overall}


def official_overall(accuracy: Mapping[str, float], rows: Mapping[str, int]) -> float:
    """v4's Overall as `bfcl evaluate` prints it: a category that is missing counts as 0 with all of its rows."""
    all_rows = {name: rows.get(name, category.rows) for name, category in CATEGORIES.items()}
    overall = averages({**dict.fromkeys((*CATEGORIES, AGENTIC), 0.0), **accuracy}, all_rows)["v4 Overall"]
    assert overall is not None
    return overall


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def _weighted(names: Sequence[str], accuracy: Mapping[str, float], rows: Mapping[str, int]) -> float | None:
    if any(name not in accuracy for name in names):
        return None
    return sum(accuracy[name] * rows[name] for name in names) / sum(rows[name] for name in names)
