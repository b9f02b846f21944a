"""The tables of a run, from its manifest and ledger; the terminal and the HTML report show the same ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.text import Text

from looptool_jax.data.contamination import KINDS
from looptool_jax.data.store import exists, join, read_jsonl
from looptool_jax.evaluation.statistics import wilson
from looptool_jax.loop.console import shown
from looptool_jax.loop.environment import NAME as ENVIRONMENT
from looptool_jax.loop.environment import environments
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Cost, Ledger
from looptool_jax.loop.manifest import Manifest, eval_folder
from looptool_jax.loop.metrics import kind


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of text, with a note below on how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> rich.table.Table:
        """The table for the terminal."""
        table = rich.table.Table(title=self.title, caption=self.note or None, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*(Text(shown(cell)) for cell in row))  # a str would be read as markup
        return table

    def markdown(self) -> str:
        """The table in Markdown, under its title."""
        lines = [[markdown_text(cell) for cell in row] for row in (self.columns, *self.rows)]
        head, *rows = [f"| {' | '.join(line)} |" for line in lines]
        rule = f"|{'---|' * len(self.columns)}"
        note = f"\n{markdown_text(self.note)}\n" if self.note else ""
        return "\n".join([f"## {markdown_text(self.title)}", "", head, rule, *rows, note])


def run_tables(run_dir: str) -> list[Table]:
    """All tables for which the run has figures by now. Raises DataError where the manifest cannot be read."""
    stages = {name: entry["metrics"] for name, entry in Manifest(run_dir).stages.items()}
    tables = [_accuracy(stages), _training(stages), _taught(stages), _composition(stages), _judging(stages)]
    tables += [_repair(stages), _expansion(stages), _contamination(stages), _cost(run_dir)]
    return [table for table in tables if table.rows]


def which_run(path: str) -> str:
    """What to give where `path` holds no run."""
    sweep = exists(join(path, "sweep.yaml"))
    return f"it is a sweep's; give one of its trials, in {join(path, 'trials')}" if sweep else "give a run's directory"


def rounds_of(stages: dict[str, Any], stage: str) -> list[tuple[int, dict[str, Any]]]:
    """(round, metrics) of every round that has finished `stage`."""
    return [
        (int(name.split("/")[0].removeprefix("round-")), metrics)
        for name, metrics in stages.items()
        if name.endswith(f"/{stage}")
    ]


def accuracies(stages: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Held-out results in order: before training, then after each round."""
    before = [("before", stages["eval-0"])] if "eval-0" in stages else []
    return before + [(f"round {round_}", metrics) for round_, metrics in rounds_of(stages, "eval")]


def verdicts(run_dir: str, round_: int) -> dict[str, bool]:
    """Whether each held-out item was answered rightly after a round (0: before the first), by the item's id."""
    return {row["id"]: row["correct"] for row in read_jsonl(join(run_dir, eval_folder(round_), "results.jsonl"))}


def _accuracy(stages: dict[str, Any]) -> Table:
    results = accuracies(stages)
    names = sorted({name for _, metrics in results for name in metrics["by_category"]})
    rows = [["all", *(f"{percent(m['accuracy'])} ±{100 * m['interval95']:.1f}" for _, m in results)]]
    for name in names:
        rows.append([name, *(_with_interval(m["by_category"].get(name)) for _, m in results)])
    items = results[0][1]["items"] if results else 0
    return Table(
        "Held-out accuracy", ["category", *(label for label, _ in results)], rows if results else [],
        f"{items:,} items; greedy answers, strict matcher; ± is the 95 % interval, of categories Wilson's",
    )  # fmt: skip


def _with_interval(part: dict[str, Any] | None) -> str:
    """The accuracy of a category with its interval."""
    if part is None:
        return percent(None)
    low, high = wilson(part["accuracy"], part["items"])
    return f"{percent(part['accuracy'])} ({100 * low:.0f}–{100 * high:.0f})"


def _training(stages: dict[str, Any]) -> Table:
    rows = [
        [
            str(round_), str(m["steps"]), f"{m['reward_first']:.3f}", f"{m['reward_last']:.3f}",
            percent(m["zero_variance"]), percent(m["truncated"]), f"{m['answer_tokens']:,}",
        ]
        for round_, m in rounds_of(stages, "train")
    ]  # fmt: skip
    columns = ["round", "steps", "reward first", "last", "no signal", "truncated", "answer tokens"]
    return Table(
        "Training", columns, rows, "reward: mean over the first and last quarter; no signal: groups of equal rewards"
    )


def _taught(stages: dict[str, Any]) -> Table:
    rows = [
        [f"D{round_} {part}", f"{found['groups']:,}", percent(found["pass_rate"]), percent(found["zero_variance"])]
        for round_, metrics in rounds_of(stages, "train")
        for part, found in metrics.get("parts", {}).items()
    ]
    note = "of the rollouts; no signal: groups of equal rewards, which teach nothing"
    return Table("Training by part", ["part", "groups", "right answers", "no signal"], rows, note)


def _composition(stages: dict[str, Any]) -> Table:
    rows = []
    for round_, metrics in rounds_of(stages, "compose"):
        for part in metrics["parts"]:
            share = part["taken"] / max(1, metrics["samples"])
            rows.append([
                f"D{round_ + 1} {part['part']}", str(part["available"]), str(part["wanted"]), str(part["taken"]),
                str(part["filled"]), percent(share),
            ])  # fmt: skip
    columns = ["part", "at hand", "wanted", "taken", "filler", "share"]
    note = "wanted: the configured share; filler: taken beyond it because another part was short"
    return Table("Data composition", columns, rows, note)


def _judging(stages: dict[str, Any]) -> Table:
    keys = ("mismatches", "prediction_wrong", "label_wrong", "both_correct", "both_wrong", "undecided")
    rows = [
        [str(round_), *(str(m[key]) for key in keys), percent(m["agreement"])]
        for round_, m in rounds_of(stages, "judge")
    ]
    columns = ["round", *(key.replace("_", " ").replace("prediction", "answer") for key in keys), "trusted"]
    return Table(
        "Judging (JGLV)",
        columns,
        rows,
        "undecided: the two orders disagree, a reply has no verdict, or the answer cannot be (or is not confirmed as) "
        "the label; set aside",
    )


def _repair(stages: dict[str, Any]) -> Table:
    rows = []
    for round_, metrics in rounds_of(stages, "score"):
        m = metrics["label_repair"]
        rows.append([
            str(round_), f"{m['wrong_labels']} of {m['seeds']}", str(m["replaced"]), percent(m["precision"]),
            percent(m["recall"]), percent(m["repaired"]), percent(m["removed"]), percent(m["harm"]),
            f"{percent(metrics['noise_before']['share'])} → {percent(metrics['noise_after']['share'])}",
        ])  # fmt: skip
    columns = [
        "round", "wrong labels", "replaced", "precision", "recall", "repaired", "removed", "harm", "noise D_j → D_j+1",
    ]  # fmt: skip
    note = "against the hidden truth; harm: right labels replaced by wrong ones; noise: of seeds, new samples left out"
    return Table("Label repair", columns, rows if any(row[1][0] != "0" for row in rows) else [], note)


def _expansion(stages: dict[str, Any]) -> Table:
    scores = dict(rounds_of(stages, "score"))
    rows = []
    for round_, m in rounds_of(stages, "expand"):
        valid = scores.get(round_, {}).get("expansion", {}).get("valid")
        rejected = [str(m[f"rejected_{tier}"]) for tier in ("parse", "rules", "judge", "duplicate")]
        rows.append([
            str(round_), str(m["seeds"]), str(m["generated"]), str(m["accepted"]), percent(m["acceptance"]),
            *rejected, percent(valid),
        ])  # fmt: skip
    columns = [
        "round", "seeds", "generated", "accepted", "rate", "unreadable", "rules", "judge", "duplicate", "valid",
    ]  # fmt: skip
    note = "rejected as unreadable, by rules, by the judge, as duplicate; valid: of the accepted, in the world"
    return Table("Expansion (EDDE)", columns, rows, note)


def too_long(scores: dict[str, Any], limit: int) -> str:
    """A line on a benchmark's rows whose prompts did not fit; "" where all did."""
    parts = scores["categories"].values()
    count, rows = sum(part["unanswered"] for part in parts), sum(part["rows"] for part in parts)
    setting = f"evaluate.answers.prompt_tokens={limit}"
    return f"{count} of {rows} prompts are longer than {setting}, and count as wrong; raise it" if count else ""


def contamination_table(checks: Sequence[tuple[str, int, dict[str, Any]]]) -> Table:
    """checks: what was checked, how many samples, and the counts of their `ContaminationReport`."""
    keys = [*KINDS, "contaminated", "tools_same", "tools_similar"]
    return Table(
        "Samples beside benchmarks",
        ["data", "samples", "benchmark", *KINDS, "in all", "same tools", "similar tools"],
        [
            [what, str(checked), f"{benchmark} ({found['rows']} rows)", *(str(found[key]) for key in keys)]
            for what, checked, counts in checks
            for benchmark, found in counts.items()
        ],
        "each sample under its closest match; a tool that is the same makes no sample contaminated",
    )


def _contamination(stages: dict[str, Any]) -> Table:
    checks = [(name, metrics["contamination"]) for name, metrics in stages.items() if "contamination" in metrics]
    return contamination_table([(name, check["checked"], check["benchmarks"]) for name, check in checks])


def _cost(run_dir: str) -> Table:
    costs = Ledger(join(run_dir, LEDGER)).costs()
    flops = stage_flops(run_dir, costs)
    known = [value for value in flops.values() if value is not None]
    if costs:
        costs["all"] = sum(costs.values(), Cost())
    flops["all"] = sum(known) if known else None
    rows = [
        [
            stage, f"{cost.seconds:.1f}", f"{cost.prompt_tokens:,}", f"{cost.tokens:,}",
            f"{cost.tokens / max(cost.seconds, 1e-9):,.0f}", _scientific(flops[stage]),
        ]
        for stage, cost in costs.items()
    ]  # fmt: skip
    return Table(
        "Cost", ["stage", "seconds", "prompt tokens", "answer tokens", "answer tokens/s", "FLOPs"], rows,
        "prompts of rollouts count once a group. FLOPs: estimated, 2 for each token and parameter that it goes "
        "through, 6 more in updates (4 beside adapters); – : not known",
    )  # fmt: skip


def stage_flops(run_dir: str, costs: dict[str, Cost]) -> dict[str, float | None]:
    """Floating-point operations of each stage, estimated from its tokens and the parameters of its model; None where
    those are not known, as behind a server. All tokens of an expansion are taken for its generator's."""
    rows = environments(join(run_dir, ENVIRONMENT))
    models, update = (rows[-1]["models"], 4 if rows[-1]["adapters"] else 6) if rows else ({}, 0)
    flops: dict[str, float | None] = {}
    for stage, cost in costs.items():
        tokens = cost.tokens + cost.prompt_tokens
        parameters = models.get({"judge": "judge", "expand": "generator"}.get(kind(stage), "policy"))
        passes = 2 + update if kind(stage) == "train" else 2
        flops[stage] = passes * parameters * tokens if parameters and tokens else None
    return flops


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}".replace("e+", "e")


def markdown_text(text: str) -> str:
    """Text that stays text in Markdown, on one line and in its column."""
    return re.sub(r"([\\`*_\[<|])", r"\\\1", " ".join(shown(text).split()))


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds for people: 41 s, 3 min 37 s, 5 h 12 min, 2 d 3 h."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
