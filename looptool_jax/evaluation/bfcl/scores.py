"""BFCL's averages, as far as its single-turn categories go (v3: gorilla commit a11f16d; v4: bfcl-eval 2026.3.23).

v3: Overall = mean(Non-Live, Live, Multi-Turn). Non-Live is the mean of Simple (itself the mean of Python, Java and
JavaScript), Multiple, Parallel, Parallel-Multiple and Irrelevance; Live weighs its six categories by their rows.
v4: Overall = 10 % Non-Live + 10 % Live + 10 % Irrelevance + 30 % Multi-Turn + 40 % Agentic. Non-Live leaves Irrelevance
out, Live weighs the four categories that want calls, Irrelevance is the mean of its two categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOT_MEASURED = (
    "Not measured: Multi-Turn (a third of v3's overall score, 30 % of v4's) and Agentic (40 % of v4's); "
    "so there is no overall score."
)
_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_MULTIPLE = ("multiple", "parallel", "parallel_multiple")
_LIVE_CALLS = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")


def averages(accuracy: Mapping[str, float], rows: Mapping[str, int]) -> dict[str, float | None]:
    """The averages by name, from the accuracy and the number of rows of each category; None where a category of an
    average is missing, which the leaderboard would count as 0."""
    simple = _mean([accuracy.get(name) for name in _SIMPLE])
    calls = [simple, *(accuracy.get(name) for name in _MULTIPLE)]
    irrelevance, live_irrelevance = accuracy.get("irrelevance"), accuracy.get("live_irrelevance")
    return {
        "v3 Non-Live": _mean([*calls, irrelevance]),
        "v3 Live": _weighted((*_LIVE_CALLS, "live_irrelevance", "live_relevance"), accuracy, rows),
        "v4 Non-Live": _mean(calls),
        "v4 Live": _weighted(_LIVE_CALLS, accuracy, rows),
        "v4 Irrelevance": _mean([irrelevance, live_irrelevance]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def _weighted(names: Sequence[str], accuracy: Mapping[str, float], rows: Mapping[str, int]) -> float | None:
    if any(name not in accuracy for name in names):
        return None
    return sum(accuracy[name] * rows[name] for name in names) / sum(rows[name] for name in names)
