"""What the report says of a run in figures and charts: the headline, accuracy, data, training, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from looptool_jax.data.store import join, read_jsonl
from looptool_jax.evaluation.statistics import paired_answers, wilson
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Cost, Ledger
from looptool_jax.loop.metrics import kind
from looptool_jax.report.charts import Dots, Line, Segment, bar_chart, interval_chart, line_chart, plain, stacked_bars
from looptool_jax.report.page import Figure, figures, text
from looptool_jax.report.status import read_status
from looptool_jax.report.stories import Stages
from looptool_jax.report.tables import accuracies, duration, percent, rounds_of, verdicts

Gain = tuple[float, float, float]
"""A difference of accuracies, and the ends of its interval."""

PARTS = {
    "seed": "seeds", "error": "error seeds", "expanded": "expanded", "high_ppl": "high perplexity",
    "seed_new": "new seeds", "mastered": "mastered",
}  # fmt: skip
CURVES: tuple[tuple[str, Sequence[tuple[str, str]], str], ...] = (
    ("Reward", [("reward", "mean reward")], "mean over the rollouts of a step"),
    (
        "Groups without signal",
        [("zero_variance", "all equal"), ("solved", "all right")],
        "share of the groups whose answers all got the same reward, and of those whose answers are all right",
    ),
    ("Answers cut off", [("truncated", "truncated")], "share of the rollouts that reach the token limit"),
    ("Answer tokens", [("answer_tokens", "tokens")], "of all rollouts of a step"),
    ("Entropy", [("entropy", "entropy")], "mean of −log p over the answer tokens, in nats: an estimate"),
    ("Gradient norm", [("grad_norm", "norm")], "before clipping"),
    (
        "Clipped tokens",
        [("clip_fraction", "ratio"), ("dual_clip_fraction", "dual clip")],
        "share of the answer tokens; 0 where a batch has one update, as its ratio is 1",
    ),
    ("Loss", [("loss", "loss")], ""),
)
SHARES = ("Reward", "Groups without signal", "Answers cut off", "Clipped tokens")
WHOLE = ("Reward", "Groups without signal")  # drawn from 0 to 100 %


def headline(run_dir: str, stages: Stages) -> str:
    """What happened in a sentence, and the figures that one looks for first."""
    gain = _gain(run_dir, stages)
    items = _accuracy_figures(stages, gain)
    scores = rounds_of(stages, "score")
    noise = [metrics[key]["share"] for _, metrics in scores for key in ("noise_before", "noise_after")]
    if any(noise):
        known = scores[0][1]["noise_before"]
        words = f"wrong labels, new samples left out; at first {known['wrong']:,} of {known['known']:,}"
        items.append(Figure("Label noise of seeds", _change(noise[0], noise[-1]), words))
    if expansions := rounds_of(stages, "expand"):
        accepted, generated = (sum(m[key] for _, m in expansions) for key in ("accepted", "generated"))
        words = f"accepted of {generated:,} written from errors"
        known = [m["expansion"] for _, m in scores if m.get("expansion", {}).get("valid") is not None]
        if checked := sum(each["samples"] for each in known):
            words += f"; {percent(sum(each['samples'] * each['valid'] for each in known) / checked)} of them valid"
        items.append(Figure("New samples", f"{accepted:,}", words))
    trained = rounds_of(stages, "train")
    costs = Ledger(join(run_dir, LEDGER)).costs()
    if trained:
        steps = sum(metrics["steps"] for _, metrics in trained)
        items.append(Figure("Training", f"{steps:,} steps", f"in {_count(len(trained), 'round')}"))
    if costs:
        seconds, tokens = sum(cost.seconds for cost in costs.values()), sum(cost.tokens for cost in costs.values())
        items.append(Figure("Time", duration(seconds), f"{tokens:,} tokens of answers"))
    status = read_status(run_dir)
    left = (status["stages"] or 0) > status["stages_done"]
    rest = f" Not finished: {status['stages_done']} of {status['stages']} stages are done." if left else ""
    return f'<p class="lead">{text(_sentence(stages, gain) + rest)}</p>{figures(items)}'


def accuracy(stages: Stages) -> str:
    """Held-out accuracy after each round, over all items and by category, with 95 % intervals."""
    results = accuracies(stages)
    if not results:
        return ""
    labels = [label for label, _ in results]
    shares = [metrics["accuracy"] for _, metrics in results]
    band = [(max(0.0, m["accuracy"] - m["interval95"]), min(1.0, m["accuracy"] + m["interval95"])) for _, m in results]
    overall = line_chart(
        "All held-out items", [Line("accuracy", range(len(labels)), shares, band)],
        x_ticks=list(enumerate(labels)), form=percent, note="band: the 95 % interval of each accuracy by itself",
    )  # fmt: skip
    names = sorted({name for _, metrics in results for name in metrics["by_category"]})
    series = []
    for label, metrics in results:
        parts = [metrics["by_category"].get(name) for name in names]
        intervals = [wilson(part["accuracy"], part["items"]) if part else None for part in parts]
        series.append(Dots(label, [part["accuracy"] if part else None for part in parts], intervals))
    categories = interval_chart("By category", names, series, x_range=(0, 1), note="lines: 95 % intervals (Wilson)")
    return f'<div class="charts">{overall}{categories}</div>'


def data(stages: Stages) -> str:
    """What every data set is made of."""
    composed = rounds_of(stages, "compose")
    if not composed:
        return ""
    sizes = [{part["part"]: part["taken"] for part in metrics["parts"]} for _, metrics in composed]
    first = stages.get("round-1/probe", composed[0][1])["samples"]  # D_1; without a loop all sets are equally large
    bars = ["D1", *(f"D{round_ + 1}" for round_, _ in composed)]
    rows = [{"seed": first}, *sizes]
    segments = [Segment(name, [row.get(key, 0) for row in rows]) for key, name in PARTS.items()]
    return stacked_bars(
        "Samples of each data set, by where they come from", bars, [s for s in segments if any(s.values)]
    )


def training(run_dir: str, stages: Stages) -> str:
    """Curves over the steps of all rounds."""
    rounds = [
        (round_, list(read_jsonl(join(run_dir, f"round-{round_}/train/steps.jsonl"))))
        for round_, _ in rounds_of(stages, "train")
    ]
    steps = [row for _, rows in rounds for row in rows]
    marks, before = [], 1
    for round_, rows in rounds:
        marks.append((float(before), f"round {round_}"))
        before += len(rows)
    at = [float(number) for number in range(1, len(steps) + 1)]
    charts = []
    for title, keys, note in CURVES:
        lines = [Line(name, at, [row.get(key) for row in steps]) for key, name in keys]
        lines = [line for line in lines if any(value is not None for value in line.y)]
        form, span = (percent if title in SHARES else plain), ((0.0, 1.0) if title in WHOLE else None)
        if lines:
            charts.append(line_chart(title, lines, x_label="step", marks=marks, y_range=span, form=form, note=note))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def compute(run_dir: str) -> str:
    """Where time and tokens went, by stage."""
    costs = Ledger(join(run_dir, LEDGER)).costs()
    if not costs:
        return ""
    by_kind: dict[str, Cost] = {}
    for stage, cost in costs.items():
        by_kind[kind(stage)] = by_kind.get(kind(stage), Cost()) + cost
    charts = [
        _bars("Seconds by kind of stage", by_kind, lambda cost: cost.seconds),
        _bars("Tokens of prompts and answers by kind of stage", by_kind, lambda cost: cost.prompt_tokens + cost.tokens),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _bars(title: str, costs: dict[str, Cost], of: Callable[[Cost], float]) -> str:
    bars = sorted(((name, of(cost)) for name, cost in costs.items()), key=lambda bar: -bar[1])
    return bar_chart(title, [bar for bar in bars if bar[1]]) if any(value for _, value in bars) else ""


def _gain(run_dir: str, stages: Stages) -> Gain | None:
    """Difference in held-out accuracy between the last round and before training, with its paired 95 % interval."""
    rounds = [round_ for round_, _ in rounds_of(stages, "eval")]
    if not stages.get("eval-0", {}).get("items") or not rounds:
        return None
    found = paired_answers(verdicts(run_dir, 0), verdicts(run_dir, rounds[-1]))
    assert found.low is not None and found.high is not None
    return found.mean, found.low, found.high


def _accuracy_figures(stages: Stages, gain: Gain | None) -> list[Figure]:
    results = accuracies(stages)
    if not results:
        return []
    if gain:
        value = _change(results[0][1]["accuracy"], results[-1][1]["accuracy"])
        return [
            Figure("Held-out accuracy", value, f"{_points(gain[0])} points ({_points(gain[1])} to {_points(gain[2])})")
        ]
    label, metrics = results[-1]
    return [Figure(f"Held-out accuracy, {label}", percent(metrics["accuracy"]), f"of {metrics['items']:,} items")]


def _sentence(stages: Stages, gain: Gain | None) -> str:
    results = accuracies(stages)
    if gain is None:
        if results and results[0][1]["items"]:
            before = percent(results[0][1]["accuracy"])
            return f"Held-out accuracy is {before} before training; no round has been evaluated yet."
        trained = rounds_of(stages, "train")
        known = f"Nothing is held out, so no accuracy is known; after {_count(len(trained), 'round')} of training."
        return known if trained else "No round is finished yet."
    after = f"after {_count(len(results) - 1, 'round')} of training"
    before, last = (percent(metrics["accuracy"]) for metrics in (results[0][1], results[-1][1]))
    mean, low, high = map(_points, gain)
    change = f"{mean} points (95 % interval {low} to {high}, paired over {results[0][1]['items']:,} items)"
    if gain[1] <= 0 <= gain[2]:
        return f"Held-out accuracy shows no clear change: {before} before and {last} {after}, {change}."
    return f"Held-out accuracy {'rose' if gain[0] > 0 else 'fell'} from {before} to {last} {after}: {change}."


def _change(before: float | None, after: float | None) -> str:
    return f"{percent(before).removesuffix(' %')} → {percent(after)}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"
